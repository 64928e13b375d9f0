"""Features: S3PRL's on single utterances, the same alone as in a batch, robust at the edges."""

import pytest
import torch
from s3prl.upstream.baseline.preprocessor import OnlinePreprocessor

from saat.upstream.audio import read_audio
from saat.upstream.config import AudioConfig
from saat.upstream.features import Features, num_tokens

SETTINGS = {"paper": AudioConfig(), "s3prl": AudioConfig(delta=0, stack=1)}
LENGTHS = [201, 800, 4799, 4800, 4801, 16000, 16160, 23456]


def speech(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise with a slow envelope and a tone: spectrum and level change over time."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples) / 16000
    noise = torch.randn(samples, generator=generator)
    return 0.1 * noise * (1.2 + torch.sin(9 * t)) + 0.3 * torch.sin(2 * torch.pi * (200 + 300 * t) * t)


def s3prl_features(wav: torch.Tensor, delta: int, feat_type: str = "mel") -> torch.Tensor:
    """(frames, dims) as S3PRL computes them for one utterance."""
    wav = wav * (10 ** (-25 / 20)) / (wav.square().mean().sqrt() + 1e-10)
    feat = {"feat_type": feat_type, "channel": 0, "log": True, "delta": delta, "cmvn": True}
    preprocessor = OnlinePreprocessor(n_mels=80, feat_list=[feat]).to(wav.dtype)
    return preprocessor(wav[None, None], wavs_len=[len(wav)])[0][0]


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("delta", [0, 1, 2])
def test_equal_to_s3prl(samples, delta):
    wav = speech(samples)
    ours, lengths = Features(AudioConfig(delta=delta, stack=1))([wav])
    theirs = s3prl_features(wav, delta)
    n = int(lengths[0])
    assert n == num_tokens(samples, 160) and len(theirs) - n in (0, 1)
    torch.testing.assert_close(ours[0], theirs[:n], atol=1e-4, rtol=0)


def test_equal_to_s3prl_on_real_speech(librispeech_small):
    """In float64 to 1e-6. In float32 each rounds the logarithm of the faintest bands by up to 5e-4, so 1e-4 can hold
    there only for nearly all values."""
    for path in sorted((librispeech_small / "train-clean-5").rglob("*.flac"))[::100]:
        for dtype, tolerance, share in ((torch.float64, 1e-6, 1.0), (torch.float32, 1e-4, 0.9999)):
            wav = read_audio(path).to(dtype)
            ours, lengths = Features(AudioConfig(stack=1)).to(dtype)([wav])
            theirs = s3prl_features(wav, 1)[: int(lengths[0])]
            close = (ours[0] - theirs).abs() <= tolerance
            assert close.double().mean() >= share


def test_linear_spectrogram_equal_to_s3prl():
    wav = speech(16001)
    ours, lengths = Features(AudioConfig(stack=1), kind="linear")([wav])
    theirs = s3prl_features(wav, 0, "linear")
    assert ours.shape[-1] == 201
    torch.testing.assert_close(ours[0], theirs[: int(lengths[0])], atol=1e-4, rtol=0)


def test_stacking_is_consecutive_frames_with_zeros_at_the_end():
    wav = speech(480 * 10 + 161)  # 32 frames: the 11th token has two of its three
    frames, _ = Features(AudioConfig(stack=1))([wav])
    tokens, lengths = Features(AudioConfig())([wav])
    assert lengths.tolist() == [11] and tokens.shape == (1, 11, 480)
    flat = tokens[0].reshape(33, 160)
    torch.testing.assert_close(flat[:32], frames[0])
    assert (flat[32] == 0).all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alone_equals_in_a_batch(setting, dtype):
    features = Features(SETTINGS[setting]).to(dtype)
    wavs = [speech(n, seed=n).to(dtype) for n in [1, 150, 479, 481, *LENGTHS]]
    batch, lengths = features(wavs)
    assert batch.dtype == dtype
    for row, n, wav in zip(batch, lengths.tolist(), wavs, strict=True):
        assert n == -(-len(wav) // SETTINGS[setting].stride)
        alone, _ = features([wav])
        torch.testing.assert_close(row[:n], alone[0], atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)
        assert (row[n:] == 0).all()


@pytest.mark.parametrize("setting", SETTINGS)
def test_silence_constants_and_short_audio_are_finite_with_finite_gradients(setting):
    wavs = [torch.zeros(16000), torch.full((800,), 0.3), torch.zeros(1), torch.ones(5), 1e-12 * speech(900)]
    for wav in wavs:
        wav = wav.requires_grad_()
        features, _ = Features(SETTINGS[setting])([wav])
        assert features.isfinite().all()
        features.sum().backward()
        assert wav.grad.isfinite().all()
    assert (Features(AudioConfig())([torch.zeros(16000)])[0] == 0).all()


def test_loudness_changes_nothing():
    wav = speech(16000)
    quiet, _ = Features(AudioConfig())([0.01 * wav])
    loud, _ = Features(AudioConfig())([30 * wav])
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["mel", "linear"])
def test_one_by_one_equals_together(setting, kind):
    """What a CPU does, and what a GPU does."""
    features = Features(SETTINGS[setting], kind)
    for lengths in (LENGTHS, [4800] * 3, [1, 90000]):
        wavs = [speech(n, seed=n) for n in lengths]
        torch.testing.assert_close(features(wavs)[0], features.together(wavs), atol=1e-5, rtol=0)


def test_threads_change_nothing():
    features = Features(AudioConfig())
    wavs = [speech(n, seed=n).requires_grad_() for n in [*LENGTHS, 60000]]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tokens, _ = features(wavs)
            gradients = torch.autograd.grad(tokens.square().sum(), wavs)
            with torch.no_grad():
                assert not features(wavs)[0].requires_grad
            assert torch.get_num_threads() == threads
            results.append((tokens, gradients))
    finally:
        torch.set_num_threads(before)
    (alone, expected), (divided, gradients) = results
    assert torch.equal(alone, divided)
    torch.testing.assert_close(gradients, expected)  # backward is torch's own matter


def test_autocast_changes_nothing():
    features, wav = Features(AudioConfig()), speech(16000)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = features([wav, wav])
    assert inside.dtype == torch.float32 and torch.equal(inside, features([wav, wav])[0])
