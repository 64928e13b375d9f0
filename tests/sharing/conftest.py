"""Small checkpoints to share, and a store of one's own."""

from pathlib import Path

import pytest
import torch
from s3prl import hub

from saat.upstream import checkpoint
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert


def make_states(small: dict, name: str = "saat_ours", seed: int = 0, **more) -> dict:
    """The states of a small model, as pre-training would save them."""
    config = model_config(name, (small | more, "test"))
    torch.manual_seed(seed)
    recipe = {"runner": {"total_steps": 9}, "optimizer": {"name": "adamw", "lr": 1e-3},
              "pretrain_expert": {"datarc": {"corpus": ["/secret/place/LibriSpeech/train-clean-100"]}}}  # fmt: skip
    return {
        "Transformer": AudioAlbert(config).state_dict(),
        "Upstream_Config": config.to_dict(),
        "Step": 9,
        "Config": recipe,
        "Args": {"seed": 3, "config": "mini"},
        "Corpus": {"utterances": 10, "fingerprint": "00"},
    }


@pytest.fixture
def ckpt(tmp_path, small):
    """Makes a `states-9.ckpt` in a folder called `lab`."""

    def make(name: str = "saat_ours", seed: int = 0, folder: str = "lab", **more) -> Path:
        path = tmp_path / folder / name / "states-9.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, make_states(small, name, seed, **more))
        return path

    return make


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store that `-u` looks in, empty. The hub forgets its tags afterwards."""
    monkeypatch.setenv("SAAT_CHECKPOINTS", str(tmp_path / "store"))
    yield tmp_path / "store"
    for name in [name for name in dir(hub) if name.startswith("saat_") and "." in name]:
        delattr(hub, name)
