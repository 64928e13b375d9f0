"""What compat supplies in place of torchaudio's own readers, which newer versions have not."""

import numpy as np
import pytest
import soundfile
import torch

from saat import compat


def test_reading_audio(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    wav, rate = compat._load(tmp_path / "a.wav")
    assert rate == 16000 and wav.dtype == torch.float32
    np.testing.assert_array_equal(wav.numpy(), samples.T)
    part, _ = compat._load(tmp_path / "a.wav", frame_offset=10, num_frames=5)
    np.testing.assert_array_equal(part.numpy(), samples[10:15].T)

    effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]  # S3PRL's speech_commands
    wav, rate = compat._apply_effects_file(tmp_path / "a.wav", effects)
    np.testing.assert_allclose(wav.numpy(), samples.mean(1)[None] * 10 ** (-3 / 20), atol=1e-6)
    assert compat._apply_effects_file(tmp_path / "a.wav", [["rate", "8000"]])[0].shape == (2, 500)
    with pytest.raises(RuntimeError, match="with the effect reverb 1 does not exist"):
        compat._apply_effects_file(tmp_path / "a.wav", [["reverb", "1"]])
