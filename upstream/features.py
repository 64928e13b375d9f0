"""Acoustic features (SPEC section 1): log-mel, deltas, normalisation, stacking, each from the true length.

Equal to S3PRL's `OnlinePreprocessor` on a single utterance; unlike it, an utterance has the same features alone as
in a batch, and nothing is computed that is not used.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import melscale_fbanks

from saat.upstream.config import SAMPLE_RATE, AudioConfig

LOG_FLOOR = 1e-10  # S3PRL's eps, added before the logarithm and to standard deviations
CPU_FRAMES = 256  # whose spectra are computed at once


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
        # Each filter twice in a row, for the squares of the real and of the imaginary part: their sum, the power, is
        # never laid out in memory.
        filters = filters.repeat_interleave(2, dim=0) if kind == "mel" else None
        self.register_buffer("filters", filters, persistent=False)

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
        lengths = torch.tensor([num_tokens(len(wav), self.config.stride) for wav in wavs])
        # A logarithm needs more than the 8 bits that bfloat16 has.
        with torch.autocast(self.window.device.type, enabled=False):
            if self.window.device.type == "cpu":
                # One by one: what is computed of an utterance then stays in the processor's cache.
                rows = each_in_a_thread(lambda wav: self.together([wav])[0], wavs)
                tokens = pad_sequence(rows, batch_first=True)
            else:
                tokens = self.together(wavs)
        return tokens, lengths

    def together(self, wavs: list[Tensor]) -> Tensor:
        """`forward`'s tokens, computed in few large steps: the faster way on a GPU."""
        samples = [len(wav) for wav in wavs]
        # As many frames as S3PRL computes: its statistics and deltas include the one centred on the very end.
        frames = torch.tensor([1 + n // self.config.hop for n in samples])
        x = self._log_spectrum(wavs, int(frames.max()))  # (B, F, bins)
        last = (frames - 1).to(x.device)[:, None]  # (B, 1)
        orders = [x]
        for _ in range(self.config.delta if self.kind == "mel" else 0):
            orders.append(deltas(orders[-1], last))
        index = torch.arange(x.shape[1], device=x.device)
        ragged = int(frames.min()) < len(index)
        if self.config.cmvn:
            valid = (index <= last)[..., None] if ragged else None  # (B, F, 1)
            orders = [normalise(order, valid) for order in orders]
        x = torch.cat(orders, dim=-1)
        kept = torch.tensor([num_tokens(n, self.config.hop) for n in samples])
        if ragged:
            x = x.masked_fill((index >= kept.to(x.device)[:, None])[..., None], 0.0)
        return self._stack(x[:, : int(kept.max())])

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
            if len(wav) <= half:
                wav = F.pad(wav, (0, half + 1 - len(wav)))
            rows.append(torch.cat([wav[1 : half + 1].flip(0), wav, wav[-half - 1 : -1].flip(0)])[:size])
        wavs = rows[0][None] if len(rows) == 1 else pad_sequence(rows, batch_first=True)
        framed = wavs.unfold(-1, self.n_fft, self.config.hop)  # (B, F, n_fft)
        # On a CPU in pieces, whose intermediate results its cache holds.
        pieces = framed.split(CPU_FRAMES if framed.device.type == "cpu" else num_frames, dim=1)
        return torch.cat([self._log_power(piece) for piece in pieces], dim=1)

    def _log_power(self, framed: Tensor) -> Tensor:
        """(B, F, n_fft) samples to (B, F, bins)."""
        parts = torch.view_as_real(torch.fft.rfft(framed * self.window))  # (B, F, n_freq, 2)
        squares = parts * parts
        power = squares.sum(-1) if self.filters is None else squares.flatten(-2) @ self.filters
        return power.add_(LOG_FLOOR).log()

    def _stack(self, x: Tensor) -> Tensor:
        """(B, F, D) frames to (B, T, stack D) tokens; what the last token lacks is zeros."""
        stack = self.config.stack
        if x.shape[1] % stack:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % stack))
        return x.reshape(len(x), -1, stack * x.shape[-1])


def each_in_a_thread(function: Callable[[Tensor], Tensor], items: list[Tensor]) -> list[Tensor]:
    """`function` of each item, on as many threads as torch may use, each item on one of them.

    A step over one utterance is too short to be worth dividing: threads would mostly wait for one another, on a busy
    machine for milliseconds.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    grad = torch.is_grad_enabled()  # a thread's own setting, as are the number of its threads and autocast

    def one(item: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad):
            return function(item)

    try:
        with ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(one, items))
    finally:
        torch.set_num_threads(threads)  # the last one set is what threads to come begin with


def deltas(x: Tensor, last: Tensor) -> Tensor:
    """Regression over 5 frames, edges replicated at each utterance's own ends (torchaudio's `compute_deltas`).

    Args: x (B, F, D); last (B, 1), the index of each utterance's last frame. Returns (B, F, D).
    """
    batch, frames, dim = x.shape
    index = torch.minimum(torch.arange(-2, frames + 2, device=x.device).clamp_min(0), last)  # (B, F + 4)
    index = index + frames * torch.arange(batch, device=x.device)[:, None]
    x = x.reshape(-1, dim).index_select(0, index.flatten()).view(batch, frames + 4, dim)
    return torch.add(x[:, 3:-1] - x[:, 1:-3], x[:, 4:] - x[:, :-4], alpha=2).div_(10)


def normalise(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Zero mean and unit (unbiased) variance of each dimension over the valid frames.

    A dimension that never changes becomes zero. Frames that are not valid come out meaningless, but finite.

    Args: x (B, F, D); valid (B, F, 1), bool: all frames where it is None. Returns (B, F, D).
    """
    count = x.shape[1] if valid is None else valid.sum(dim=1, keepdim=True)
    # Relative to the first frame, so that a constant (silence) gives exactly zero instead of amplified rounding.
    x = x - x[:, :1]
    x = x if valid is None else x.masked_fill_(~valid, 0.0)
    x -= x.sum(dim=1, keepdim=True) / count
    x = x if valid is None else x.masked_fill_(~valid, 0.0)
    variance = (x * x).sum(dim=1, keepdim=True) / (max(count - 1, 1) if valid is None else (count - 1).clamp_min(1))
    # The floor keeps the gradient of the root finite where the variance is zero.
    return x / (variance.clamp_min(LOG_FLOOR**2).sqrt() + LOG_FLOOR)
