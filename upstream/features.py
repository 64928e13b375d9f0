"""Acoustic features (SPEC section 1): log-mel, deltas, normalisation, stacking, each from the true length.

Equal to S3PRL's `OnlinePreprocessor` on a single utterance; unlike it, an utterance has the same features alone as
in a batch, and nothing is computed that is not used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from saat.upstream.config import SAMPLE_RATE, AudioConfig

LOG_FLOOR = 1e-10  # S3PRL's eps, added before the logarithm and to standard deviations


def num_tokens(samples: int, stride: int) -> int:
    """Tokens of an utterance: ceil(samples / stride). Token i is centred within [i, i + 1) strides."""
    return -(-samples // stride)


class Features(nn.Module):
    """Waveforms to tokens, batched.

    Args:
        config: which features.
        kind: `mel` (the model's input) or `linear` (log power spectrogram, an optional pre-training target).
    """

    def __init__(self, config: AudioConfig, kind: str = "mel"):
        super().__init__()
        self.config = config
        self.kind = kind
        self.window_length = round(config.win_ms * SAMPLE_RATE / 1000)
        self.n_fft = (config.n_freq - 1) * 2
        window = torch.hann_window(self.window_length)
        # A window shorter than the FFT sits in its middle, as in torch.stft.
        left = (self.n_fft - self.window_length) // 2
        window = F.pad(window, (left, self.n_fft - self.window_length - left))
        self.register_buffer("window", window, persistent=False)
        filters = melscale_fbanks(config.n_freq, 0.0, SAMPLE_RATE / 2, config.n_mels, SAMPLE_RATE)
        self.register_buffer("filters", filters if kind == "mel" else None, persistent=False)

    @property
    def dim(self) -> int:
        """Values in a token."""
        return self.config.input_dim if self.kind == "mel" else self.config.n_freq * self.config.stack

    def forward(self, wavs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens of each waveform.

        Args:
            wavs: B waveforms, each (samples,), 16 kHz, at least one sample long.

        Returns:
            tokens (B, T, dim), zero beyond each utterance's end; lengths (B,), tokens, int64 on the CPU.
        """
        samples = [len(wav) for wav in wavs]
        # As many frames as S3PRL computes: its statistics and deltas include the one centred on the very end.
        frames = torch.tensor([1 + n // self.config.hop for n in samples])
        x = self._log_spectrum(wavs, int(frames.max()))  # (B, F, bins)
        index = torch.arange(x.shape[1], device=x.device)
        last = (frames - 1).to(x.device)[:, None]  # (B, 1)
        if self.kind == "mel":
            orders = [x]
            for _ in range(self.config.delta):
                orders.append(deltas(orders[-1], last))
            x = torch.cat(orders, dim=-1)
        valid = (index <= last)[..., None]  # (B, F, 1)
        if self.config.cmvn:
            x = normalise(x, valid)
        kept = torch.tensor([num_tokens(n, self.config.hop) for n in samples])
        lengths = torch.tensor([num_tokens(n, self.config.stride) for n in samples])
        return self._stack(x, kept.to(x.device), int(lengths.max())), lengths

    def _log_spectrum(self, wavs: list[Tensor], num_frames: int) -> Tensor:
        """(B, num_frames, bins). Frames of shorter utterances beyond their end are meaningless, but finite."""
        size = (num_frames - 1) * self.config.hop + self.n_fft
        half = self.n_fft // 2
        rows = []
        for wav in wavs:
            wav = wav.to(self.window)
            level = wav.square().mean().clamp_min(1e-40 if wav.dtype == torch.float64 else 1e-30).sqrt()
            wav = wav * (10 ** (self.config.target_level / 20) / (level + LOG_FLOOR))
            # An utterance too short to be reflected at its ends is lengthened by silence.
            wav = F.pad(wav, (0, max(0, half + 1 - len(wav))))
            wav = F.pad(wav[None], (half, half), mode="reflect")[0]
            rows.append(F.pad(wav[:size], (0, max(0, size - len(wav)))))
        framed = torch.stack(rows).unfold(-1, self.n_fft, self.config.hop)  # (B, F, n_fft)
        spectrum = torch.fft.rfft(framed * self.window)
        power = spectrum.real.square() + spectrum.imag.square()
        if self.filters is not None:
            power = power @ self.filters
        return (power + LOG_FLOOR).log()

    def _stack(self, x: Tensor, kept: Tensor, num_tokens: int) -> Tensor:
        """(B, F, D) frames to (B, T, stack D) tokens; frames beyond `kept` (B,) become zeros."""
        stack = self.config.stack
        x = x[:, : num_tokens * stack]
        x = x.masked_fill((torch.arange(x.shape[1], device=x.device) >= kept[:, None])[..., None], 0.0)
        x = F.pad(x, (0, 0, 0, num_tokens * stack - x.shape[1]))
        return x.reshape(len(x), num_tokens, stack * x.shape[-1])


def deltas(x: Tensor, last: Tensor) -> Tensor:
    """Regression over 5 frames, edges replicated at each utterance's own ends (torchaudio's `compute_deltas`).

    Args: x (B, F, D); last (B, 1), the index of each utterance's last frame. Returns (B, F, D).
    """
    index = torch.arange(x.shape[1], device=x.device)

    def shifted(by: int) -> Tensor:
        near = torch.minimum((index + by).clamp_min(0), last)  # (B, F)
        return x.gather(1, near[..., None].expand_as(x))

    return ((shifted(1) - shifted(-1)) + 2 * (shifted(2) - shifted(-2))) / 10


def normalise(x: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) variance of each dimension over the valid frames (B, F, 1).

    A dimension that never changes becomes zero. Frames that are not valid come out meaningless, but finite.
    """
    count = valid.sum(dim=1, keepdim=True)
    # Relative to the first frame, so that a constant (silence) gives exactly zero instead of amplified rounding.
    x = (x - x[:, :1]).masked_fill(~valid, 0.0)
    x = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(~valid, 0.0)
    variance = x.square().sum(dim=1, keepdim=True) / (count - 1).clamp_min(1)
    # The floor keeps the gradient of the root finite where the variance is zero.
    return x / (variance.clamp_min(LOG_FLOOR**2).sqrt() + LOG_FLOOR)
