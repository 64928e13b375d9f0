"""Fixtures every test may use."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

import saat

# Before registration looks into it: the user's own store is left alone. It stays empty; tests that publish set theirs.
os.environ["SAAT_CHECKPOINTS"] = os.path.join(tempfile.gettempdir(), "saat-tests-have-no-store")
saat.register()
torch.set_num_threads(2)

SPEECH = Path(__file__).resolve().parent.parent.parent / "shared" / "speech"


@pytest.fixture(scope="session")
def librispeech_small() -> Path:
    """Real speech beside the checkout; users do not have it."""
    folder = SPEECH / "librispeech_small"
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder.name} beside the checkout")
    return folder


@pytest.fixture
def one_thread():
    """For tiny models: several threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small():
    """Overrides that make any variant small."""
    return {
        "transformer": {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 12,
            "intermediate_size": 96,
            "max_length": 40,
        }
    }
