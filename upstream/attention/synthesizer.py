"""Dense Synthesizers: weights from each query alone, without keys (SPEC section 2.3; Tay et al., 2020)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.errors import SaatError
from saat.upstream.attention.base import Attention, dot_product_attention, padding_mask
from saat.upstream.config import TransformerConfig


@dataclass(frozen=True)
class DenseConfig:
    """One map for all heads."""

    bottleneck: int = 16  # b, the hidden size of the two-layer map

    def __post_init__(self):
        if self.bottleneck < 1:
            raise SaatError(f"attention.bottleneck must be at least 1, not {self.bottleneck}")


@dataclass(frozen=True)
class MultiDenseConfig(DenseConfig):
    """One map a head."""

    share_heads: bool = False  # the heads share the map's weights, each on its own slice (the authors' code)


class SynthesizerDense(Attention):
    """softmax(W2 ReLU(W1 x_i)), W1: H to b, W2: b to L, the first n columns used."""

    limited = True

    def __init__(self, transformer: TransformerConfig, config: DenseConfig):
        super().__init__(transformer, config)
        self.max_length = transformer.max_length
        self.squeeze = nn.Linear(transformer.hidden_size, config.bottleneck)
        self.expand = nn.Linear(config.bottleneck, transformer.max_length)

    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Tensor | None:
        return padding_mask(lengths, size, like.device)

    def scores(self, hidden: Tensor) -> Tensor:
        """(B, T, H) to (B, T, T)."""
        size = hidden.shape[1]
        return F.linear(self.squeeze(hidden).relu(), self.expand.weight[:size], self.expand.bias[:size])

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        scores = self.scores(hidden)[:, None].expand(-1, self.num_heads, -1, -1)
        return self.masked_softmax(scores, lengths)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Tensor | None = None) -> Tensor:
        mask = self.prepare(lengths, hidden.shape[1], hidden) if prepared is None else prepared
        scores = self.scores(hidden)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], float("-inf"))
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        value = self.value(hidden)
        return weights.to(value.dtype) @ value  # one map: the heads need no splitting


class SynthesizerMultiDense(Attention):
    """The same with a map a head, W1: d to b, W2: b to L, on the head's slice of x."""

    limited = True

    def __init__(self, transformer: TransformerConfig, config: MultiDenseConfig):
        super().__init__(transformer, config)
        self.max_length = transformer.max_length
        maps = 1 if config.share_heads else self.num_heads
        std = transformer.initializer_range
        self.squeeze = nn.Parameter(torch.randn(maps, self.head_size, config.bottleneck) * std)
        self.squeeze_bias = nn.Parameter(torch.zeros(maps, 1, config.bottleneck))
        self.expand = nn.Parameter(torch.randn(maps, transformer.max_length, config.bottleneck) * std)
        self.expand_bias = nn.Parameter(torch.zeros(maps, transformer.max_length))

    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Tensor | None:
        return padding_mask(lengths, size, like.device)

    def squeezed(self, hidden: Tensor) -> Tensor:
        """ReLU(W1 x): (B, T, H) to (B, A, T, b)."""
        return (self.split(hidden) @ self.squeeze + self.squeeze_bias).relu()

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        size = hidden.shape[1]
        scores = self.squeezed(hidden) @ self.expand[:, :size].transpose(-1, -2) + self.expand_bias[:, None, :size]
        return self.masked_softmax(scores, lengths)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Tensor | None = None) -> Tensor:
        mask = self.prepare(lengths, hidden.shape[1], hidden) if prepared is None else prepared
        v = self.split(self.value(hidden))
        q, k = self._as_queries_and_keys(hidden)
        dropout = self.dropout if self.training else 0.0
        context = dot_product_attention(q, k, v, mask, dropout=dropout, scale=1.0)
        return context.transpose(1, 2).flatten(2)

    def _as_queries_and_keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The map as dot products that fused attention computes: [ReLU(W1 x); 1] . [W2 row; its bias].

        Both (B, A, T, at least d): filled up with zeros, since the kernels want queries as long as values.
        """
        B, T, _ = hidden.shape
        fill = max(0, self.head_size - self.config.bottleneck - 1)
        q = self.squeezed(hidden)
        q = F.pad(F.pad(q, (0, 1), value=1.0), (0, fill))
        k = torch.cat([self.expand[:, :T], self.expand_bias[:, :T, None]], -1)
        return q, F.pad(k, (0, fill)).to(q.dtype).expand(B, self.num_heads, -1, -1)
