"""Ours: the Random Synthesizer whose R starts as hand-made patterns (SPEC section 2.4)."""

from dataclasses import dataclass

from torch import Tensor

from saat.errors import SaatError
from saat.upstream.attention.fixed import FixedWeights
from saat.upstream.attention.patterns import authors_logits, head_patterns


@dataclass(frozen=True)
class OursConfig:
    """How R starts."""

    init: str = "patterns"  # softmax(R) is the pattern; `authors`: R is the pattern, as in their published code
    smoothing: float = 0.01  # P <- (1 - eps) P + eps / L, so that no logarithm is of zero
    seed: int = 0  # of the Sparse heads' random columns

    def __post_init__(self):
        if self.init not in ("patterns", "authors"):
            raise SaatError(f"attention.init must be 'patterns' or 'authors', not '{self.init}'")
        if not 0 < self.smoothing < 1:
            raise SaatError(f"attention.smoothing must lie in (0, 1), not {self.smoothing}")


class Ours(FixedWeights):
    """softmax(R), R the logarithm of the smoothed patterns at the start."""

    config: OursConfig

    def initial_logits(self, num_heads: int, length: int) -> Tensor:
        if self.config.init == "authors":
            return authors_logits(num_heads, length, self.config.seed)
        eps = self.config.smoothing
        patterns = head_patterns(num_heads, length, self.config.seed)
        return ((1 - eps) * patterns + eps / length).log()
