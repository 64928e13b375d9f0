"""What an attention head looks at, in numbers.

A map A is (T, T), row i the query, column j the key; the utterance has n tokens, so the map's real part is A[:n, :n],
whose rows sum to 1; the rest is padding and never read. Globalness, verticality and diagonality are those of Yang,
Liu, Lee, *Understanding Self-Attention of Self-Supervised Audio Transformers* (arXiv 2006.03265, section 3), there
averaged over utterances as well; H is the entropy in nats.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """Of distributions over the last dimension, nats: (…, n) to (…)."""
    return torch.special.entr(p).sum(-1)


def globalness(maps: Tensor) -> Tensor:
    """How widely a query looks: the mean of the rows' entropies, 0 (one key a query) to log n (all alike).

    (…, n, n) to (…).
    """
    return entropy(maps).mean(-1)


def verticality(maps: Tensor) -> Tensor:
    """How much all queries look at the same few keys: minus the entropy of the rows' mean, -log n to 0 (one column).

    (…, n, n) to (…).
    """
    return -entropy(maps.mean(-2))


def diagonality(maps: Tensor) -> Tensor:
    """How near the keys are: minus the sum of |i - j| A[i, j] over n^2, which is minus the mean distance over n.

    0 on the diagonal itself, about -1/3 for uniform weights. (…, n, n) to (…).
    """
    n = maps.shape[-1]
    places = torch.arange(n, device=maps.device)
    return -((places[:, None] - places).abs() * maps).sum((-2, -1)) / n**2


def slope(maps: Tensor) -> Tensor:
    """How the weight a key gets changes from the utterance's first token to its last.

    The slope of the least-squares line through the points (x_j, n m_j): m_j the mean of column j over all queries,
    n m_j its ratio to uniform weights, x_j = (j + 1/2) / n the key's place in the utterance. 0 for uniform weights, 2
    where weights grow linearly from 0, at most 6 (all on the last key); negative where earlier keys get more. 0 for n
    = 1. (…, n, n) to (…).
    """
    n = maps.shape[-1]
    x = (torch.arange(n, device=maps.device).to(maps) + 0.5) / n - 0.5
    return n * (maps.mean(-2) * x).sum(-1) / x.square().sum().clamp_min(torch.finfo(maps.dtype).tiny)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "diagonality": diagonality,
    "globalness": globalness,
    "verticality": verticality,
    "slope": slope,
}


def measure(maps: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Every measure of every map of a batch, each (B, A).

    Args:
        maps: (B, A, T, T), of any `weights()`.
        lengths: (B,), tokens; what lies beyond is not read.
    """
    real = [one[:, :n, :n] for one, n in zip(maps.double(), lengths.tolist(), strict=True)]
    return {name: torch.stack([function(one) for one in real]) for name, function in MEASURES.items()}
