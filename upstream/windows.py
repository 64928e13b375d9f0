"""Utterances longer than the attention's L tokens: overlapping windows, blended (SPEC section 2.5)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

WINDOWS_AT_ONCE = 16  # bounds the memory of one call on hours of audio


def window_starts(length: int, size: int) -> list[int]:
    """First tokens of the windows over `length` tokens: hop size / 2, the last one flush with the end."""
    if length <= size:
        return [0]
    hop = max(1, size // 2)
    return [*range(0, length - size, hop), length - size]


def fade(size: int) -> Tensor:
    """(size,) float64 blending weights: a triangle that is zero at the window's edges, at the tokens' centres."""
    ramp = torch.arange(size).double() + 0.5
    return torch.minimum(ramp, ramp.flip(0))


class Windows:
    """Where the windows of a batch lie, and how their outputs are blended.

    Args:
        lengths: (B,), tokens.
        size: the window, L tokens.
    """

    def __init__(self, lengths: Tensor, size: int):
        self.lengths = lengths
        self.size = size
        self.places = [
            (b, start, min(size, length))
            for b, length in enumerate(lengths.tolist())
            for start in window_starts(length, size)
        ]

    def blend(self, features: Tensor, encode: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
        """Run `encode` on the windows of features (B, T, D); every state it returns is blended to (B, T, H)."""
        B, T, _ = features.shape
        total = self._total_weight(T).to(features.device)  # (B, T)
        blended: list[Tensor] = []
        for first in range(0, len(self.places), WINDOWS_AT_ONCE):
            chunk = self.places[first : first + WINDOWS_AT_ONCE]
            windows = pad_sequence([features[b, s : s + n] for b, s, n in chunk], batch_first=True)
            states = encode(windows, torch.tensor([n for _, _, n in chunk]))
            if not blended:
                blended = [state.new_zeros(B, T, state.shape[-1]) for state in states]
            for i, (b, s, n) in enumerate(chunk):
                share = (fade(n).to(total) / total[b, s : s + n])[:, None]
                for whole, state in zip(blended, states, strict=True):
                    whole[b, s : s + n] += (share * state[i, :n]).to(whole.dtype)
        return blended

    def _total_weight(self, size: int) -> Tensor:
        """(B, size) float64: the sum of the blending weights at each token."""
        total = torch.zeros(len(self.lengths), size, dtype=torch.float64)
        for b, s, n in self.places:
            total[b, s : s + n] += fade(n)
        return total
