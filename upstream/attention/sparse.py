"""Sparse attention, strided and fixed (SPEC section 2.2; Child et al., 2019), without a causal mask.

With l = floor(sqrt(n)), the first half of the heads sees keys nearby, the other half keys all over the utterance.
Only what a query sees is computed, O(n sqrt(n)): bands and blocks, residue classes, summary columns, each as a batch
of small dense attentions.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saat.upstream.attention.base import dot_product_attention
from saat.upstream.attention.softmax import SharedQK
from saat.upstream.config import TransformerConfig


@dataclass(frozen=True)
class SparseConfig:
    """The sparse variants have no options."""


class Sparse(SharedQK):
    """Shared-QK attention within a support that depends on the utterance's own length.

    Sub-classes give the supports (the definition) and the small attentions that cover them (the speed).
    """

    def __init__(self, transformer: TransformerConfig, config: Any):
        super().__init__(transformer, config)
        self.num_local = (self.num_heads + 1) // 2  # an odd head is local

    @staticmethod
    def local_support(n: int, step: Tensor) -> Tensor:
        """(B, n, n) bool: what the local heads see; `step` (B, 1, 1) is each utterance's l."""
        raise NotImplementedError

    @staticmethod
    def global_support(n: int, step: Tensor) -> Tensor:
        """(B, n, n) bool: what the global heads see."""
        raise NotImplementedError

    def local_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        """Context of the local heads: three of (B, heads, n, d) to one."""
        raise NotImplementedError

    def global_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        """Context of the global heads: three of (B, heads, n, d) to one."""
        raise NotImplementedError

    def support(self, lengths: Tensor, size: int) -> Tensor:
        """(B, A, size, size) bool: the keys each query of each head sees, padding still among them."""
        step = lengths.double().sqrt().long()[:, None, None]  # exact: roots are rounded correctly
        local, far = self.local_support(size, step), self.global_support(size, step)
        return torch.stack([local] * self.num_local + [far] * (self.num_heads - self.num_local), dim=1)

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        scores = self.scores(*self.queries_and_keys(hidden))
        return self.masked_softmax(scores, lengths, self.support(lengths.to(scores.device), hidden.shape[1]))

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Any = None) -> Tensor:
        q, k = self.queries_and_keys(hidden)
        v = self.split(self.value(hidden))
        numbers = lengths.tolist()
        if set(numbers) == {hidden.shape[1]}:
            context = self._context(q, k, v)
        else:
            # l differs with the length, so utterances of one length go together.
            context = torch.zeros_like(v)
            for n in sorted(set(numbers)):
                rows = [b for b, m in enumerate(numbers) if m == n]
                context[rows, :, :n] = self._context(q[rows, :, :n], k[rows, :, :n], v[rows, :, :n])
        return context.transpose(1, 2).flatten(2)

    def _context(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, A, n, d) for utterances of n tokens."""
        step, near = math.isqrt(q.shape[2]), self.num_local
        parts = [self.local_attention(q[:, :near], k[:, :near], v[:, :near], step)]
        if near < self.num_heads:
            parts.append(self.global_attention(q[:, near:], k[:, near:], v[:, near:], step))
        return torch.cat(parts, dim=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Dense attention in each of G groups: (B, heads, G, n', d), mask (G, n' or 1, m') to (B, heads, G, n', d)."""
        B, heads = q.shape[:2]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        context = dot_product_attention(q, k, v, mask, dropout=dropout)
        return context.unflatten(0, (B, heads))


def in_groups(x: Tensor, size: int) -> Tensor:
    """(…, n, d) to (…, ceil(n / size), size, d), the last group filled up with zeros."""
    n = x.shape[-2]
    x = F.pad(x, (0, 0, 0, -n % size)) if n % size else x.contiguous()
    return x.unflatten(-2, (-1, size))


def group_mask(n: int, size: int, device: torch.device) -> Tensor | None:
    """(ceil(n / size), size), False where `in_groups` filled up; None where it did not."""
    if n % size == 0:
        return None
    return in_groups(torch.ones(n, 1, dtype=torch.bool, device=device), size)[..., 0]


class SparseStrided(Sparse):
    """Local: |i - j| <= l. Global: (i - j) mod l = 0."""

    @staticmethod
    def local_support(n: int, step: Tensor) -> Tensor:
        i = torch.arange(n, device=step.device)
        return (i[:, None] - i).abs() <= step

    @staticmethod
    def global_support(n: int, step: Tensor) -> Tensor:
        i = torch.arange(n, device=step.device)
        return (i[:, None] - i) % step == 0

    def local_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        # Queries in blocks of l; each block sees itself and its two neighbours, within the band.
        n = q.shape[2]
        q = in_groups(q, step)  # (B, heads, G, l, d)
        groups = q.shape[2]
        k, v = (self._with_neighbours(x, step, groups) for x in (k, v))  # (B, heads, G, 3 l, d)
        row = torch.arange(step, device=q.device)[:, None]
        column = torch.arange(3 * step, device=q.device) - step
        band = (row - column).abs() <= step  # (l, 3 l)
        key = torch.arange(groups, device=q.device)[:, None] * step + column  # (G, 3 l), token numbers
        mask = band & ((key >= 0) & (key < n))[:, None]
        # The rows that fill up the last block may see no key: they take any, and are cut off.
        mask |= ~mask.any(-1, keepdim=True)
        return self.attend(q, k, v, mask).flatten(2, 3)[:, :, :n]

    @staticmethod
    def _with_neighbours(x: Tensor, step: int, groups: int) -> Tensor:
        """(B, heads, n, d) to (B, heads, G, 3 l, d): each block of l with the one before and the one after."""
        x = F.pad(x, (0, 0, step, (groups + 1) * step - x.shape[2]))
        return x.unfold(2, 3 * step, step).transpose(-1, -2)

    def global_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        # Tokens with the same remainder modulo l attend to one another.
        n = q.shape[2]
        mask = group_mask(n, step, q.device)  # (m, l)
        q, k, v = (in_groups(x, step).transpose(2, 3) for x in (q, k, v))  # (B, heads, l, m, d)
        context = self.attend(q, k, v, None if mask is None else mask.T[:, None])
        return context.transpose(2, 3).flatten(2, 3)[:, :, :n]


class SparseFixed(Sparse):
    """Local: floor(i / l) = floor(j / l). Global: j mod l = l - 1, the summary columns."""

    @staticmethod
    def local_support(n: int, step: Tensor) -> Tensor:
        block = torch.arange(n, device=step.device) // step  # (B, 1, n)
        return block.transpose(1, 2) == block

    @staticmethod
    def global_support(n: int, step: Tensor) -> Tensor:
        j = torch.arange(n, device=step.device)
        return (j % step == step - 1).expand(-1, n, -1)

    def local_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        n = q.shape[2]
        mask = group_mask(n, step, q.device)  # (G, l)
        q, k, v = (in_groups(x, step) for x in (q, k, v))
        return self.attend(q, k, v, None if mask is None else mask[:, None]).flatten(2, 3)[:, :, :n]

    def global_attention(self, q: Tensor, k: Tensor, v: Tensor, step: int) -> Tensor:
        k, v = (x[:, :, step - 1 :: step] for x in (k, v))
        return dot_product_attention(q, k, v, dropout=self.dropout if self.training else 0.0)
