"""The repository's hubconf.py, as torch.hub reads it."""

from pathlib import Path

import torch

from saat.sharing import actions

ROOT = str(Path(__file__).resolve().parents[2])


def load(name: str, **kwargs):
    return torch.hub.load(ROOT, name, source="local", **kwargs)


def test_torch_hub(ckpt, store):
    path = ckpt()
    actions.publish(str(path), tag="mini")
    wavs = [torch.randn(5000, generator=torch.Generator().manual_seed(0))]
    models = [load("saat_ours"), load("saat_ours.mini"), load("saat_ours_local", ckpt=str(path))]
    with torch.no_grad():
        states = [model.eval()(wavs)["last_hidden_state"] for model in models]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    assert load("saat_mel")(wavs)["last_hidden_state"].shape == (1, 11, 480)
