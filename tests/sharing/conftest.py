"""Small checkpoints to share, and a store of one's own."""

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from s3prl import hub
from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel

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


@pytest.fixture
def the_hub(tmp_path, monkeypatch):
    """huggingface_hub's functions, on a folder instead of a network."""
    remote = tmp_path / "huggingface"
    calls = []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None, force_download=False):
        calls.append(("snapshot_download", repo_id, revision, allow_patterns, force_download))
        if not (remote / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("neither in the cache nor on the Hub")
        return str(remote / repo_id)

    def hf_hub_download(repo_id, filename):
        return str(remote / repo_id / filename)

    class Api:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            calls.append(("create_repo", repo_id, private, exist_ok))
            if repo_id == "no/access":
                raise RuntimeError("401 Unauthorized\nlong explanation")
            (remote / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def file_exists(self, repo_id, filename):
            return (remote / repo_id / filename).is_file()

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            calls.append(("upload_folder", repo_id, commit_message))
            for name in allow_patterns:
                shutil.copy(f"{folder_path}/{name}", remote / repo_id / name)
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return SimpleNamespace(folder=remote, calls=calls)


class Scheduler:
    """Stands for what S3PRL's older checkpoints have pickled."""

    def __init__(self):
        self.t_total = 1


SIZES = {
    "input_dim": -1, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 96,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "share_layer": True, "pre_layer_norm": False,
}  # fmt: skip
FEATURES = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
AUDIO = {"target_level": -25, "win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 80, "n_mfcc": 13}


def write_s3prl_checkpoint(path, transformer=None, features=None, audio=None, legacy=False, **more):
    """What S3PRL's pre-training saves, pickled arguments and all."""
    sizes, features = SIZES | (transformer or {}), FEATURES | (features or {})
    torch.manual_seed(0)
    model = TransformerModel(TransformerConfig(sizes), features["delta"] * 80 + 80)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = {
        "transformer": sizes,
        "audio": AUDIO | {"input": features, "target": dict(features)} if audio is None else audio,
        "task": {"sequence_length": 1500},
    }
    states = {
        "Transformer": model.state_dict(),
        "SpecHead": {},
        "Optimizer": {"state": {}, "schedule": Scheduler()},
        "Args": argparse.Namespace(upstream="audio_albert", seed=1337),
        "Step": 7,
        **({"Config": config} if legacy else {"Upstream_Config": config, "Config": {"runner": {}}}),
        **more,
    }
    torch.save(states, path)
    return path


@pytest.fixture
def s3prl_checkpoint():
    """Writes what S3PRL's pre-training saves; see `write_s3prl_checkpoint`."""
    return write_s3prl_checkpoint
