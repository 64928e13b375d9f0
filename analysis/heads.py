"""What an attention head looks at: in numbers, and as one of the paper's four categories.

A map A is (n, n) for an utterance of n tokens, without padding: row i the query, column j the key, rows summing to 1;
`describe` cuts the padding off. Globalness, verticality and diagonality are those of Yang, Liu, Lee, *Understanding
Self-Attention of Self-Supervised Audio Transformers* (arXiv 2006.03265), there averaged over utterances as well.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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


def distance_ratio(maps: Tensor) -> Tensor:
    """How far the keys are, compared with queries that do not care where they are: 0 on the diagonal.

    The mean distance |i - j| over what it would be if every row were the rows' mean. Whatever the columns look like, it
    is 1 where all rows are alike. 1 for n = 1. (…, n, n) to (…).
    """
    n = maps.shape[-1]
    places = torch.arange(n, device=maps.device)
    distance = (places[:, None] - places).abs().to(maps)
    careless = (maps.mean(-2) * distance.mean(0)).sum(-1)
    found = (maps * distance).sum(-1).mean(-1)
    return torch.where(careless > 0, found / careless, torch.ones_like(found))


def trend(maps: Tensor) -> Tensor:
    """Pearson's correlation of a key's mean weight m_j with its place j, in [-1, 1]; 0 where all m_j are equal.

    (…, n, n) to (…).
    """
    m = maps.mean(-2)
    m = m - m.mean(-1, keepdim=True)
    x = torch.arange(maps.shape[-1], device=maps.device).to(maps)
    x = x - x.mean()
    size = m.square().sum(-1).sqrt() * x.square().sum().sqrt()
    return torch.where(size > 1e-9, (m * x).sum(-1) / size.clamp_min(1e-9), torch.zeros_like(size))


def departure(maps: Tensor) -> Tensor:
    """How far the rows are from uniform: log n - globalness, nats, which is their mean KL divergence from it."""
    return math.log(maps.shape[-1]) - globalness(maps)


CATEGORIES = ("Diagonal", "Sparse", "Increasing", "Decreasing")
NEAR = 0.85  # Diagonal: of the distance that careless queries have, at most this
TREND = 0.3  # Increasing, Decreasing: correlation of weight and place, at least
TREND_SHARE = 0.02  # and the share of the departure from uniform weights that a straight line accounts for, at least
FLAT = 0.01  # a map whose departure is a smaller share of log n


class Categories(NamedTuple):
    """What `categorise` finds, each of the shape (…)."""

    index: Tensor  # int64, into CATEGORIES
    clearness: Tensor  # in [0, 1], to be compared within a category
    flat: Tensor  # bool


def categorise(maps: Tensor) -> Categories:
    """The paper's four categories of attention maps, by a rule of ours: the paper shows pictures. (…, n, n) to (…).

    1. Diagonal: keys lie near their query; their mean distance is at most 0.85 of that of the rows' mean
       (`distance_ratio`).
    2. Increasing, Decreasing: not Diagonal, and the columns get brighter to the right, or to the left. The mean weight
       of a key correlates with its place by at least 0.3, either way (`trend`); and that is no ripple on something
       else: the divergence from uniform of weights with this slope, slope^2 / 24 nats, is at least 0.02 of `departure`.
    3. Sparse: the rest. Neither place nor nearness says which keys are seen: scattered keys, stripes on no side, a
       few sharp stripes wherever they are.

    A map is `flat`, too, where departure is below 1 % of log n: weights so even that its category says little. Exactly
    uniform weights are Sparse and flat. Thresholds are shares and correlations, so they hold for any length; below
    some 20 tokens a few keys make a trend. Clearness is 1 - distance_ratio for Diagonal, the size of the trend for
    Increasing and Decreasing, departure over log n (how few keys a query sees) for Sparse.
    """
    maps = maps.double()
    log_n = max(math.log(maps.shape[-1]), 1e-9)
    ratio, correlation, away = distance_ratio(maps), trend(maps), departure(maps).clamp_min(0)
    share = slope(maps).square() / 24 / away.clamp_min(1e-9)
    diagonal = ratio <= NEAR
    trending = (correlation.abs() >= TREND) & (share >= TREND_SHARE) & ~diagonal
    index = torch.full(diagonal.shape, CATEGORIES.index("Sparse"), device=maps.device)
    index[diagonal] = CATEGORIES.index("Diagonal")
    index[trending & (correlation > 0)] = CATEGORIES.index("Increasing")
    index[trending & (correlation < 0)] = CATEGORIES.index("Decreasing")
    clearness = torch.where(diagonal, 1 - ratio, torch.where(trending, correlation.abs(), away / log_n))
    return Categories(index, clearness.clamp(0, 1), away < FLAT * log_n)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "diagonality": diagonality,
    "globalness": globalness,
    "verticality": verticality,
    "slope": slope,
}


def describe(maps: Tensor, length: int | None = None) -> dict[str, Tensor]:
    """Every measure, and what `categorise` finds: `category` (index), `clearness`, `flat`; each of the shape (…).

    Args:
        maps: (…, T, T), of any `weights()`.
        length: tokens of the utterance; what lies beyond them is padding and not read. By default T.
    """
    real = maps[..., :length, :length].double()
    found = categorise(real)
    numbers = {name: function(real) for name, function in MEASURES.items()}
    return {**numbers, "category": found.index, "clearness": found.clearness, "flat": found.flat}
