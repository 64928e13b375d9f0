"""Tiny corpora and recipes: a step takes some milliseconds."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from saat.pretrain.cli import pretrain

TINY = {
    "runner": {"total_steps": 6, "log_step": 3, "save_step": 100, "max_keep": 10},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "pretrain_expert": {"datarc": {"train_batch_size": 4, "num_workers": 0}},
    "model": {
        "audio": {"n_mels": 10},
        "transformer": {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "intermediate_size": 32,
            "max_length": 25,
        },
        "task": {"sequence_length": 60},
    },
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The user's cache folder is left alone."""
    monkeypatch.setenv("SAAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def tiny_models(one_thread):
    """Everything here is tiny."""


def speech_like(seconds: float, seed: int, rate: int = 16000) -> np.ndarray:
    """Harmonics of a pitch that jumps every 0.1 s: something that can be learnt."""
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.integers(1, 5, int(seconds * 10) + 1) * 150.0, rate // 10)[: int(seconds * rate)]
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(np.sin(k * phase) / k for k in range(1, 6))
    return (0.1 * tones + 0.001 * rng.standard_normal(len(phase))).astype(np.float32)


def write_corpus(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """`count` utterances of 0.4 to 1.3 s, in LibriSpeech's layout."""
    for i in range(count):
        path = folder / str(100 + i % 3) / "7" / f"{100 + i % 3}-7-{i:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(0.4 + 0.1 * (i % 10) + 0.003 * i, seed + i), 16000)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Ten utterances; tests that change files make their own."""
    return write_corpus(tmp_path_factory.mktemp("speech"))


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def run(recipe, corpus):
    """Pre-trains: run(expdir, *flags, o=overrides, upstream=…), the tiny recipe unless flags say otherwise."""

    def call(expdir, *flags, o="", upstream="saat_ours", **kwargs):
        flags = [str(flag) for flag in flags]
        argv = ["-p", str(expdir), *flags]
        if "-e" not in flags:
            argv += ["-u", upstream, "-c", str(recipe)]
        if "-e" not in flags and "--corpus" not in flags:
            argv += ["--corpus", str(corpus)]
        return pretrain([*argv, *(["-o", o] if o else [])], progress=False)

    return call


def states_of(path):
    """What a checkpoint holds."""
    return torch.load(path, weights_only=True)


def same(a, b) -> bool:
    """Bitwise equality of nested containers of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
