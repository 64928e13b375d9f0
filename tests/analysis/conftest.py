"""A tiny model of any variant, a little corpus, and a study that was never begun."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from saat.analysis.study.options import Corpora, Options
from saat.upstream import checkpoint
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert
from tests.downstream.conftest import make_corpus  # noqa: F401

SIZES = {
    "audio": {"n_mels": 10},
    "transformer": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 24,
        "max_length": 24,
    },
}


@pytest.fixture
def speech(tmp_path) -> Path:
    """Six utterances of 18 to 33 tokens: noise that swells and fades."""
    folder = tmp_path / "speech"
    rng = np.random.default_rng(0)
    for i in range(6):
        n = 480 * (18 + 3 * i)
        path = folder / "1" / "2" / f"1-2-{i:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * np.sin(np.arange(n) / 900) * rng.standard_normal(n), 16000)
    return folder


@pytest.fixture
def make_checkpoint(tmp_path):
    """Saves a tiny model: make_checkpoint(upstream), its weights random and large enough for maps to differ."""

    def make(upstream: str, path: str | Path | None = None, **transformer) -> Path:
        sizes = {**SIZES, "transformer": {**SIZES["transformer"], **transformer}}
        config = model_config(upstream, (sizes, "the test"))
        torch.manual_seed(0)
        encoder = AudioAlbert(config)
        with torch.no_grad():
            for name, value in encoder.named_parameters():
                if not name.endswith(".R") and value.dim() > 1:
                    value.mul_(20)
        path = Path(path or tmp_path / f"{upstream}.ckpt")
        path.parent.mkdir(parents=True, exist_ok=True)
        states = {"Transformer": encoder.state_dict(), "Upstream_Config": config.to_dict(), "Step": 1500}
        checkpoint.save(path, states)
        return path

    return make


@pytest.fixture
def options(tmp_path):
    corpora = Corpora(["/pre"], ["/spk"], ["/ph"], "/phones.txt", None, ["/other"])
    return Options(
        corpora, "mini", tmp_path / "out", ["saat_mel", "saat_qk", "saat_ours", "saat_ours_from_qk"], seeds=2
    )
