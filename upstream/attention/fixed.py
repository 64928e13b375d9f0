"""Weights that do not depend on the input: softmax(R), R a parameter (SPEC sections 2.3 and 2.4)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.upstream.attention.base import Attention, key_mask
from saat.upstream.config import TransformerConfig


class Shared(NamedTuple):
    """softmax(R) in a form that serves every length n: exp(R - m) and its running row sums.

    The weights of an utterance of n tokens are `exp[:, :n, :n] / sums[:, :n, n - 1]`.
    """

    exp: Tensor  # (A, L, L), R's rows less their own maximum m
    sums: Tensor  # (A, L, L), exp summed over the columns so far
    smallest: list[float]  # for each n: the smallest sum a row of it has


class Batch(NamedTuple):
    """What the layers of one pass share."""

    exp: Tensor  # (A, T, T)
    inverse: Tensor  # (A, T, B) one over the row sums; zero where the row is recomputed, and beyond the utterance
    real: Tensor | None  # (B, T) key mask; None without padding
    rows: list[tuple[int, Tensor, Tensor]]  # (utterance, flat indices of rows of (A, T), their weights (rows, T))


@dataclass(frozen=True)
class FixedConfig:
    """Random Synthesizer: R starts from N(0, 1)."""

    seed: int = 0  # of the random numbers R starts from


class FixedWeights(Attention):
    """One matrix R a head for every utterance; the softmax runs over the utterance's own n columns.

    The softmax is computed once a pass of the encoder, and in eval without gradients once for all passes, whatever
    the lengths; no (B, A, T, T) tensor is made.
    """

    limited = True

    def __init__(self, transformer: TransformerConfig, config: Any):
        super().__init__(transformer, config)
        self.max_length = transformer.max_length
        self.R = nn.Parameter(self.initial_logits(transformer.num_attention_heads, transformer.max_length).float())
        self._cache: tuple[tuple, Shared] | None = None

    def initial_logits(self, num_heads: int, length: int) -> Tensor:
        """(A, L, L), where R starts."""
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randn(num_heads, length, length, generator=generator)

    # The cache must not outlive what it was computed from.

    def train(self, mode: bool = True) -> "FixedWeights":
        self._cache = None
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs):
        self._cache = None
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}

    def shared(self) -> Shared:
        """softmax(R) for every length; from the cache in eval with gradients disabled."""
        cacheable = not self.training and not torch.is_grad_enabled() and not self.R.is_inference()
        if not cacheable:
            return self._normalise()
        # The version counter moves with every in-place change, loading a state dict included.
        key = (self.R._version, self.R.data_ptr())
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._normalise())
        return self._cache[1]

    def _normalise(self) -> Shared:
        with torch.autocast(self.R.device.type, enabled=False):
            R = self.R if self.R.dtype == torch.float64 else self.R.float()
            exp = (R - R.detach().amax(-1, keepdim=True)).exp()
            sums = exp.cumsum(-1)
        # Row i belongs to lengths n > i, and its sum only grows with n.
        lowest = sums.detach().amin(0)  # (L, L)
        smallest = lowest.masked_fill(torch.ones_like(lowest).triu(0) == 0, math.inf).amin(0)
        return Shared(exp, sums, smallest.tolist())

    @torch.compiler.disable  # its lists and cache are for Python; torch 2.8 compiles them wrongly
    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Batch:
        shared = self.shared()
        columns = (lengths - 1).to(like.device)
        sums = shared.sums[:, :size].index_select(-1, columns)  # (A, T, B)
        padded = bool((lengths < size).any())
        real = key_mask(lengths, size).to(like.device) if padded else None
        # A row whose largest entry lies beyond column n has lost its precision: it gets a softmax of its own.
        floor = math.sqrt(torch.finfo(sums.dtype).tiny)
        lost = torch.zeros_like(sums, dtype=torch.bool)  # (A, T, B)
        if padded:
            lost |= ~real.T
        rows = []
        for b, n in enumerate(lengths.tolist()):
            if shared.smallest[n - 1] >= floor:
                continue
            low = F.pad(sums[:, :n, b] < floor, (0, size - n))  # (A, T)
            lost[:, :, b] |= low
            where = low.flatten().nonzero()[:, 0]  # (rows,) of A T
            logits = self.R[:, :size, :n].flatten(0, 1)[where]
            rows.append((b, where, F.pad(logits.softmax(-1), (0, size - n))))
        inverse = 1 / sums.masked_fill(lost, math.inf)
        return Batch(shared.exp[:, :size, :size], inverse, real, rows)

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        size = hidden.shape[1]
        scores = self.R[:, :size, :size].expand(hidden.shape[0], -1, -1, -1)  # torch.export takes len() for a constant
        return self.masked_softmax(scores, lengths)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Batch | None = None) -> Tensor:
        batch = self.prepare(lengths, hidden.shape[1], hidden) if prepared is None else prepared
        v = self.value(hidden)
        if batch.real is not None:
            v = v.masked_fill(~batch.real[..., None], 0.0)  # padded keys add nothing
        B, T, _ = v.shape
        v = v.unflatten(-1, (self.num_heads, -1)).permute(2, 1, 0, 3)  # (A, T, B, d)
        keep = self._dropout_mask(T, v)
        # float16 cannot hold exp(R) in rows whose maximum lies beyond a short utterance.
        dtype = torch.float32 if v.dtype == torch.float16 else v.dtype
        with torch.autocast(v.device.type, enabled=False):
            exp = batch.exp.to(dtype) if keep is None else batch.exp.to(dtype) * keep.to(dtype)
            context = (exp @ v.reshape(self.num_heads, T, -1).to(dtype)).unflatten(-1, (B, -1))  # (A, T, B, d)
            context = (context * batch.inverse[..., None].to(dtype)).to(v.dtype)
        if batch.rows:
            context = self._with_recomputed(context, v, batch, keep)
        return context.permute(2, 1, 0, 3).reshape(B, T, -1)

    def _dropout_mask(self, size: int, like: Tensor) -> Tensor | None:
        """(A, T, T) for the whole batch, since the weights are shared by it; None without dropout."""
        if not self.training or not self.dropout:
            return None
        return F.dropout(like.new_ones(self.num_heads, size, size), self.dropout)

    def _with_recomputed(self, context: Tensor, v: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Adds the rows that `exp` could not give. context (A, T, B, d), zero there; v (A, T, B, d)."""
        A, T, _, _ = v.shape
        for b, where, weights in batch.rows:
            if keep is not None:
                weights = weights * keep.flatten(0, 1)[where]
            head = where // T
            # One product a head: the heads' rows differ in number.
            own = [weights[head == a].to(v.dtype) @ v[a, :, b] for a in range(A)]
            add = torch.zeros_like(context[:, :, b]).flatten(0, 1).index_add(0, where, torch.cat(own))
            context = context.index_add(2, torch.tensor([b], device=v.device), add.view(A, T, 1, -1))
        return context
