"""Locality-sensitive hashing, symmetric and asymmetric (SPEC section 2.1): which keys a query sees.

Query i of a head has a random vector a_i. It sees the k keys with the largest (a_i . Q(q_i)) (a_i . P(k_j)), and
softmaxes their ordinary scaled dot products. No gradient flows through the selection.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saat.errors import SaatError
from saat.upstream.attention.base import dot_product_attention, key_mask
from saat.upstream.attention.softmax import SharedQK
from saat.upstream.config import TransformerConfig

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class LSHConfig:
    """How keys are selected."""

    num_keys: int = 32  # keys a query sees at most
    n_hashes: int = 1  # random vectors a query, their products summed
    hash_dtype: str = "float32"  # at least this precise; the paper hashes in float16
    vector_rows: int = 500  # eval: tokens with random vectors of their own; token i uses row i mod this
    seed: int = 0  # of the vectors used in eval

    def __post_init__(self):
        if self.hash_dtype not in DTYPES:
            raise SaatError(f"attention.hash_dtype must be one of {', '.join(DTYPES)}, not '{self.hash_dtype}'")
        for name in ("num_keys", "n_hashes", "vector_rows"):
            if getattr(self, name) < 1:
                raise SaatError(f"attention.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class SignALSHConfig(LSHConfig):
    """Sign-ALSH's own numbers, as in the paper."""

    m: int = 2  # extra coordinates
    U: float = 0.75  # the largest norm after scaling


class LSH(SharedQK):
    """Shared-QK attention to the keys that hashing selects.

    In training every utterance has random vectors of its own, drawn afresh for each pass of the encoder; in eval they
    are a buffer, so that a frozen feature extractor is deterministic. The layers of a pass share them.
    """

    extra = 0  # coordinates that P and Q append
    not_elsewhere = "it selects the keys with the largest products, and a rounding error changes which these are"
    config: LSHConfig

    def __init__(self, transformer: TransformerConfig, config: LSHConfig):
        super().__init__(transformer, config)
        generator = torch.Generator().manual_seed(config.seed)
        shape = (self.num_heads, config.vector_rows, config.n_hashes, self.head_size + self.num_extra)
        self.register_buffer("vectors", torch.randn(shape, generator=generator))

    @property
    def num_extra(self) -> int:
        return self.extra

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """P(x) and Q(x), normalisation included.

        Args: x (…, T, d), keys that are also queries; largest (…, 1, 1), M, the largest norm of a key of the
        utterance and head (of padding too short to matter: tokens beyond the end may be longer).
        Returns: two of (…, T, d + extra).
        """
        raise NotImplementedError

    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The random vectors a_i of this pass: (B in training, 1 in eval, A, size, n_hashes, d + extra)."""
        if self.training:
            return self._drawn(lengths, size, seeds)
        return self.vectors[None, :, torch.arange(size, device=self.vectors.device) % self.vectors.shape[1]]

    @torch.compiler.disable  # generators are for Python
    def _drawn(self, lengths: Tensor, size: int, seeds: Tensor | None) -> Tensor:
        if seeds is None:
            seeds = torch.randint(2**53, (len(lengths),))
        out = self.vectors.new_zeros(len(lengths), self.num_heads, size, *self.vectors.shape[2:])
        generator = torch.Generator(out.device)
        for row, n, seed in zip(out, lengths.tolist(), seeds.tolist(), strict=True):
            # As many as the utterance has tokens: whatever it is padded to, it gets the same.
            generator.manual_seed(seed)
            row[:, :n] = torch.randn(row[:, :n].shape, generator=generator, device=out.device, dtype=out.dtype)
        return out

    @torch.no_grad()
    def hash_products(self, q: Tensor, lengths: Tensor, vectors: Tensor) -> Tensor:
        """sum over hashes of (a_i . Q(q_i)) (a_i . P(k_j)): (B, A, T, T), -inf at padded keys.

        q (B, A, T, d); lengths (B,); vectors (1 or B, A, T, n_hashes, d + extra).
        """
        dtype = DTYPES[self.config.hash_dtype]
        if q.dtype in (torch.float32, torch.float64):
            dtype = torch.promote_types(q.dtype, dtype) if dtype.itemsize > 2 else dtype
        with torch.autocast(q.device.type, enabled=False):
            x, a = q.to(dtype), vectors.to(dtype)
            real = key_mask(lengths, q.shape[2]).to(q.device)[:, None]  # (B, 1, T)
            norm = x.norm(dim=-1).masked_fill(~real, 0.0)
            largest = norm.amax(-1)[..., None, None].clamp_min(torch.finfo(dtype).tiny)  # (B, A, 1, 1)
            keys, queries = self.transform(x, largest)
            # (a . Q)(a . P) = ((a . Q) a) . P, so any number of hashes is one product a head.
            coefficient = torch.einsum("bate,bathe->bath", queries, a)
            direction = torch.einsum("bath,bathe->bate", coefficient, a)
            products = direction @ keys.transpose(-1, -2)
        if bool((lengths < q.shape[2]).any()):
            products.masked_fill_(~real[:, :, None, :], float("-inf"))
        return products

    def select_keys(self, q: Tensor, lengths: Tensor, vectors: Tensor) -> Tensor:
        """Which keys each query sees: (B, A, T, T), bool, min(k, n) True in each row.

        Args: q (B, A, T, d); lengths (B,); vectors (1 or B, A, T, n_hashes, d + extra).
        """
        return among_largest(self.hash_products(q, lengths, vectors), self.config.num_keys)

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        q, k = self.queries_and_keys(hidden)
        selected = self.select_keys(q, lengths, self.prepare(lengths, hidden.shape[1], hidden))
        return self.masked_softmax(self.scores(q, k), lengths, selected)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Tensor | None = None) -> Tensor:
        vectors = self.prepare(lengths, hidden.shape[1], hidden) if prepared is None else prepared
        q, k = self.queries_and_keys(hidden)
        v = self.split(self.value(hidden))
        dropout = self.dropout if self.training else 0.0
        selected = self.select_keys(q, lengths, vectors)
        context = dot_product_attention(q, k, v, selected, dropout=dropout)
        return context.transpose(1, 2).flatten(2)


def among_largest_by_topk(scores: Tensor, count: int) -> Tensor:
    """The definition of `among_largest`."""
    top = scores.topk(min(count, scores.shape[-1]), dim=-1, sorted=False)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top.indices, top.values > float("-inf"))


@torch.no_grad()
@torch.compiler.disable  # it would make torch's sort of numpy's
def among_largest(scores: Tensor, count: int) -> Tensor:
    """Which entries are among the `count` largest of their row, -inf never: (…, n) to bool."""
    if scores.device.type != "cpu" or scores.dtype == torch.bfloat16 or count >= scores.shape[-1]:
        return among_largest_by_topk(scores, count)
    # On a CPU numpy sorts a row (with AVX) several times faster than torch selects from it.
    ordered = sorted_rows(scores)
    last, next_one = ordered[..., -count].clamp_min(torch.finfo(scores.dtype).min), ordered[..., -count - 1]
    chosen = scores >= last[..., None]
    # With equals at the boundary the threshold alone lets too many in; and NaN sorts last.
    unclear = ~(last > next_one) | ordered[..., -1].isnan()
    if bool(unclear.any()):
        chosen[unclear] = among_largest_by_topk(scores[unclear], count)
    return chosen


def sorted_rows(scores: Tensor) -> Tensor:
    """(…, n) on the CPU, each row in rising order; the rows are shared out among torch's threads."""
    ordered = scores.clone(memory_format=torch.contiguous_format)
    rows = ordered.numpy().reshape(-1, scores.shape[-1])
    threads = max(1, min(torch.get_num_threads(), len(rows)))
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of Python's lock while it sorts
        list(pool.map(lambda part: part.sort(axis=-1), np.array_split(rows, threads)))
    return ordered


def squared_norm(x: Tensor) -> Tensor:
    """(…, d) to (…, 1)."""
    return x.square().sum(-1, keepdim=True)


class SignALSH(LSH):
    """x <- U x / M; P = [x; 1/2 - |x|^2; 1/2 - |x|^4; …], Q = [x; 0; …] (Shrivastava and Li, 2014)."""

    config: SignALSHConfig

    @property
    def num_extra(self) -> int:
        return self.config.m

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        x = x / largest * self.config.U
        squared = squared_norm(x)
        powers = [0.5 - squared ** (2**i) for i in range(self.config.m)]
        return torch.cat([x, *powers], -1), F.pad(x, (0, self.config.m))


class XBOX(LSH):
    """P = [x; sqrt(M^2 - |x|^2)], Q = [x; 0] (Bachrach et al., 2014)."""

    extra = 1

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        rest = (largest.square() - squared_norm(x)).clamp_min(0).sqrt()
        return torch.cat([x, rest], -1), F.pad(x, (0, 1))


class QNFXBOX(XBOX):
    """XBOX with the query normalised first: Q = [lambda x; 0], lambda = M / |x| (Huang et al., 2018)."""

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        keys, queries = super().transform(x, largest)
        norm = squared_norm(x).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        return keys, queries / norm * largest


class SimpleLSH(LSH):
    """x <- x / M; P = Q = [x; sqrt(1 - |x|^2)] (Neyshabur and Srebro, 2014)."""

    extra = 1

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        x = x / largest
        both = torch.cat([x, unit_rest(x)], -1)
        return both, both


class SimpleALSH(LSH):
    """x <- x / M; P = [x; 0; sqrt(1 - |x|^2)], Q = [x; sqrt(1 - |x|^2); 0] (Neyshabur and Srebro, 2014)."""

    extra = 2

    def transform(self, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        x = x / largest
        rest, zero = unit_rest(x), torch.zeros_like(x[..., :1])
        return torch.cat([x, zero, rest], -1), torch.cat([x, rest, zero], -1)


def unit_rest(x: Tensor) -> Tensor:
    """sqrt(1 - |x|^2), the coordinate that makes x a unit vector: (…, d) to (…, 1)."""
    return (1 - squared_norm(x)).clamp_min(0).sqrt()
