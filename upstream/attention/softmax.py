"""Self-attention over all keys: Baseline (QK) and Baseline (Q), SPEC section 2."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saat.upstream.attention.base import Attention, dot_product_attention, padding_mask
from saat.upstream.config import TransformerConfig


@dataclass(frozen=True)
class QKConfig:
    """Baseline (QK) has no options."""


@dataclass(frozen=True)
class QConfig:
    """Baseline (Q) has no options."""


class SharedQK(Attention):
    """Attention whose keys are its queries: one projection (the paper's shared-QK)."""

    def __init__(self, transformer: TransformerConfig, config: Any):
        super().__init__(transformer, config)
        self.query = nn.Linear(transformer.hidden_size, transformer.hidden_size)

    def queries_and_keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, H) to two of (B, A, T, d)."""
        q = self.split(self.query(hidden))
        return q, q

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled dot products: (…, T, d) twice to (…, T, T)."""
        return q @ k.transpose(-1, -2) / math.sqrt(self.head_size)


class Q(SharedQK):
    """softmax(q q^T / sqrt d)."""

    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Tensor | None:
        return padding_mask(lengths, size, like.device)

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return self.masked_softmax(self.scores(*self.queries_and_keys(hidden)), lengths)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Tensor | None = None) -> Tensor:
        if prepared is None:
            prepared = self.prepare(lengths, hidden.shape[1], hidden)
        q, k = self.queries_and_keys(hidden)
        v = self.split(self.value(hidden))
        dropout = self.dropout if self.training else 0.0
        context = dot_product_attention(q, k, v, prepared, dropout=dropout)
        return context.transpose(1, 2).flatten(2)


class QK(Q):
    """softmax(q k^T / sqrt d), keys from a projection of their own."""

    def __init__(self, transformer: TransformerConfig, config: QKConfig):
        super().__init__(transformer, config)
        self.key = nn.Linear(transformer.hidden_size, transformer.hidden_size)

    def queries_and_keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.query(hidden)), self.split(self.key(hidden))
