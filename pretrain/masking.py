"""Masked acoustic modelling: which tokens of an utterance are chosen, and what becomes of them (SPEC section 3).

An utterance of n tokens has `runs` runs of `width` consecutive tokens chosen, where width = min(mask_consecutive, n)
and runs = mask_proportion n / width, rounded half up, at least 1 and at most what fits. Runs do not overlap, and all
placements are equally likely. How many tokens are chosen thus depends on n alone: the loss of a batch can be
normalised before anything is computed.
"""

import math

import torch
from torch import Tensor

from saat.pretrain.draws import CHOOSE, REPLACE, TREAT, draws, threshold
from saat.upstream.config import TaskConfig


def runs_of(tokens: int, task: TaskConfig) -> tuple[int, int]:
    """(runs, width): how many runs are chosen in an utterance of `tokens` tokens, and how many tokens a run has."""
    width = min(task.mask_consecutive, tokens)
    runs = math.floor(task.mask_proportion * tokens / width + 0.5)
    return min(max(runs, 1), tokens // width), width


def num_chosen(lengths: Tensor, task: TaskConfig) -> int:
    """Tokens chosen in a whole batch of utterances of lengths (B,) tokens."""
    return sum(math.prod(runs_of(n, task)) for n in lengths.tolist())


def choose(
    lengths: Tensor, numbers: Tensor, size: int, seed: int, task: TaskConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which tokens are chosen.

    Args:
        lengths: (B,), tokens.
        numbers: (B,), the sample numbers.
        size: T, tokens of the padded batch.
        device: where to compute it.

    Returns:
        chosen (B, T), bool, False in the padding; start (B, T), the first token of a chosen token's run.
    """
    runs, width = torch.tensor([runs_of(n, task) for n in lengths.tolist()]).T.to(device)[..., None]  # (B, 1) each
    lengths, numbers = lengths.to(device), numbers.to(device)
    position = torch.arange(size, device=device)
    # `runs` disjoint runs in n places correspond one to one to `runs` single slots in n - runs (width - 1) places.
    slots = lengths[:, None] - runs * (width - 1)
    keys = draws(seed, CHOOSE, numbers, position).masked_fill(position >= slots, torch.iinfo(torch.int64).max)
    rank = keys.argsort(dim=1, stable=True).argsort(dim=1)
    taken = rank < runs  # (B, T), exactly `runs` in each row
    first = position + (taken.cumsum(1) - 1) * (width - 1)
    # Slots that are not taken write into a column of their own, which is then cut off.
    is_first = torch.zeros(len(keys), size + 1, dtype=torch.bool, device=device)
    is_first.scatter_(1, first.where(taken, torch.full_like(first, size)), True)
    start = position.where(is_first[:, :size], torch.full_like(keys, -1)).cummax(dim=1).values
    return (start >= 0) & (position - start < width), start.clamp_min(0)


def mask_tokens(
    features: Tensor, lengths: Tensor, numbers: Tensor, seed: int, task: TaskConfig
) -> tuple[Tensor, Tensor]:
    """The model's input and the tokens to reconstruct.

    All chosen tokens of an utterance are zeroed (`zero_proportion` of the utterances), or replaced by other tokens of
    it, run by run (`replace_proportion`), or left. A run is replaced by as many tokens from another place of the
    utterance, its end continuing at its beginning.

    Args:
        features: (B, T, D).
        lengths: (B,), tokens, on the CPU.
        numbers: (B,), the sample numbers, on the CPU; with the seed they determine everything.

    Returns:
        masked (B, T, D); chosen (B, T), bool.
    """
    device = features.device
    chosen, start = choose(lengths, numbers, features.shape[1], seed, task, device)
    numbers, lengths = numbers.to(device), lengths.to(device)[:, None]
    position = torch.arange(features.shape[1], device=device)
    treatment = draws(seed, TREAT, numbers, position[:1])  # (B, 1)
    zero = treatment < threshold(task.zero_proportion)
    replace = ~zero & (treatment < threshold(task.zero_proportion + task.replace_proportion))
    # Never by 0 or n, so that a token is not replaced by itself.
    by = 1 + draws(seed, REPLACE, numbers, position) % (lengths - 1).clamp_min(1)
    source = (position + by.gather(1, start)) % lengths
    source = source.where(chosen & replace, position)  # (B, T)
    rows = source + len(position) * torch.arange(len(source), device=device)[:, None]
    masked = features.flatten(0, 1).index_select(0, rows.flatten()).view_as(features)
    return masked.masked_fill_((chosen & zero)[..., None], 0.0), chosen
