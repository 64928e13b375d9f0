"""The hand-made attention patterns R of `ours` starts from (SPEC section 2.4, the paper's Figure 2a).

A pattern is (L, L), row i the query, column j the key, each row summing to 1.
"""

import torch
from torch import Tensor

SPARSE_COLUMNS = 8  # keys a row of a Sparse head sees


def head_categories(num_heads: int) -> tuple[int, int, int]:
    """How many heads are Diagonal, Increasing or Decreasing, and Sparse: 5 : 2 : 5, by largest remainder."""
    shares = (5, 2, 5)
    counts = [num_heads * share // 12 for share in shares]
    remainders = [num_heads * share % 12 for share in shares]
    # On a tie the middle goes first, so that Increasing and Decreasing are not the ones to vanish.
    for i in sorted((1, 0, 2), key=lambda i: -remainders[i])[: num_heads - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def normalise_rows(x: Tensor) -> Tensor:
    """Rows scaled to sum 1; a row of zeros stays."""
    total = x.sum(-1, keepdim=True)
    return x / total.where(total > 0, torch.ones_like(total))


def shifted(length: int, by: int) -> Tensor:
    """Each token attends to the one `by` places after it, clamped to the ends."""
    keys = (torch.arange(length) + by).clamp(0, length - 1)
    return torch.nn.functional.one_hot(keys, length).double()


def increasing(length: int) -> Tensor:
    """(j + 1)^3 in every row: later keys get more."""
    return normalise_rows(torch.arange(1, length + 1).double().pow(3).expand(length, length))


def decreasing(length: int) -> Tensor:
    """(L - j)^3 in every row: earlier keys get more."""
    return increasing(length).flip(-1)


def past(length: int) -> Tensor:
    """(j + 1)^3 where j <= i."""
    return normalise_rows(increasing(length).tril())


def future(length: int) -> Tensor:
    """(L - j)^3 where j >= i."""
    return normalise_rows(decreasing(length).triu())


def diagonals(length: int, count: int) -> list[Tensor]:
    """Identity, previous, next, past, future; beyond five heads, shifts that reach further."""
    found = [shifted(length, 0), shifted(length, -1), shifted(length, 1), past(length), future(length)]
    for by in range(2, count):
        found += [shifted(length, -by), shifted(length, by)]
    return found[:count]


def sparse(length: int, generator: torch.Generator) -> Tensor:
    """Eight random keys a row with equal weight, at least one of them not after the query."""
    columns = min(SPARSE_COLUMNS, length)
    keys = torch.rand(length, length, generator=generator).topk(columns).indices
    rows = torch.arange(length)
    early = (torch.rand(length, generator=generator) * (rows + 1)).long()  # in [0, i]
    only_later = (keys > rows[:, None]).all(-1)
    keys[:, 0] = torch.where(only_later, early, keys[:, 0])
    return normalise_rows(torch.zeros(length, length).double().scatter_(1, keys, 1.0))


def head_patterns(num_heads: int, length: int, seed: int) -> Tensor:
    """(A, L, L) float64: the Diagonal heads on the left, Increasing and Decreasing, the Sparse ones on the right."""
    num_diagonal, num_middle, num_sparse = head_categories(num_heads)
    generator = torch.Generator().manual_seed(seed)
    middle = [increasing(length), decreasing(length)]
    return torch.stack(
        diagonals(length, num_diagonal)
        + [middle[i % 2] for i in range(num_middle)]
        + [sparse(length, generator) for _ in range(num_sparse)]
    )


def authors_logits(num_heads: int, length: int, seed: int) -> Tensor:
    """(A, L, L) float64: the start of the authors' published code, whose patterns are the logits themselves.

    Identity, next, previous (both wrapping around), past (j <= i - 2), "future" (j >= i + 2, growing away from the
    frame), Increasing, Decreasing; the remaining heads N(0, 1).
    """
    eye = torch.eye(length).double()
    grow = increasing(length)
    away = normalise_rows(grow * torch.ones(length, length).double().triu(2))
    heads = [eye, eye.roll(1, -1), eye.roll(-1, -1)]
    heads += [normalise_rows(grow.tril(-2)), away, grow, decreasing(length)]
    generator = torch.Generator().manual_seed(seed)
    heads += [torch.randn(length, length, generator=generator).double() for _ in range(num_heads - len(heads))]
    return torch.stack(heads[:num_heads])
