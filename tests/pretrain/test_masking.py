"""The batched masks against their definition, one token at a time; and their statistics."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from saat.pretrain.draws import BITS, CHOOSE, REPLACE, TREAT, draw, draws, threshold
from saat.pretrain.masking import choose, mask_tokens, num_chosen, runs_of
from saat.upstream.config import TaskConfig

CPU = torch.device("cpu")


def naive_starts(tokens: int, number: int, seed: int, task: TaskConfig) -> list[int]:
    """Disjoint runs: single slots are drawn, then each is widened, pushing the later ones to the right."""
    runs, width = runs_of(tokens, task)
    slots = range(tokens - runs * (width - 1))
    taken = sorted(sorted(slots, key=lambda slot: draw(seed, CHOOSE, number, slot))[:runs])
    return [slot + k * (width - 1) for k, slot in enumerate(taken)]


def naive_mask(tokens: list, number: int, seed: int, task: TaskConfig) -> tuple[list, list[bool]]:
    """What becomes of a list of tokens, and which are chosen."""
    n = len(tokens)
    _, width = runs_of(n, task)
    treatment = draw(seed, TREAT, number, 0) / 2**BITS
    masked, chosen = list(tokens), [False] * n
    for start in naive_starts(n, number, seed, task):
        for i in range(start, start + width):
            chosen[i] = True
            if treatment < task.zero_proportion:
                masked[i] = 0
            elif treatment < task.zero_proportion + task.replace_proportion:
                by = 1 + draw(seed, REPLACE, number, start) % max(n - 1, 1)
                masked[i] = tokens[(i + by) % n]
    return masked, chosen


def test_draws_are_the_definition():
    numbers, positions = torch.tensor([0, 1, 7, 10**9]), torch.arange(40)
    for seed in (0, 1337, 2**63 + 11, -5):
        got = draws(seed, CHOOSE, numbers, positions)
        expected = [[draw(seed, CHOOSE, n, p) for p in range(40)] for n in numbers.tolist()]
        assert got.tolist() == expected


def test_draws_are_uniform_and_unrelated():
    x = draws(3, CHOOSE, torch.arange(200), torch.arange(500)).double() / 2**BITS
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.005 and abs(x.var() - 1 / 12) < 0.002
    centred = x - x.mean()
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs((a * b).mean() / x.var()) < 0.015


@pytest.mark.parametrize("consecutive", [1, 2, 7, 30])
@pytest.mark.parametrize("proportion", [0.01, 0.15, 0.5, 1.0])
def test_mask_is_the_definition(consecutive, proportion):
    task = TaskConfig(
        mask_proportion=proportion, mask_consecutive=consecutive, zero_proportion=0.4, replace_proportion=0.4
    )
    lengths = torch.tensor([1, 2, 3, 5, 6, 7, 8, 13, 20, 29, 31, 40, 53])
    numbers = torch.arange(len(lengths)) * 17 + 4
    T = int(lengths.max()) + 2
    features = torch.arange(1, len(lengths) * T + 1).view(len(lengths), T, 1).double()
    kept = features.clone()
    masked, chosen = mask_tokens(features, lengths, numbers, 11, task)
    assert torch.equal(features, kept)
    for b, n in enumerate(lengths.tolist()):
        expected, marks = naive_mask(features[b, :n, 0].tolist(), int(numbers[b]), 11, task)
        assert masked[b, :n, 0].tolist() == expected
        assert chosen[b].tolist() == marks + [False] * (T - n)  # never the padding
        assert torch.equal(masked[b, n:], features[b, n:])


def test_count_is_known_beforehand():
    for consecutive in (1, 3, 7):
        task = TaskConfig(mask_consecutive=consecutive)
        lengths = torch.arange(1, 120)
        chosen, _ = choose(lengths, lengths + 5, 120, 0, task, CPU)
        assert int(chosen.sum()) == num_chosen(lengths, task)
        assert (chosen.sum(1) >= 1).all()


def test_rounding():
    task = TaskConfig()
    assert [runs_of(n, task)[0] for n in (1, 3, 9, 10, 16, 17, 500)] == [1, 1, 1, 2, 2, 3, 75]
    assert runs_of(500, replace(task, mask_consecutive=7)) == (11, 7)
    assert runs_of(4, replace(task, mask_consecutive=7)) == (1, 4)
    assert runs_of(11, replace(task, mask_consecutive=7, mask_proportion=1.0)) == (1, 7)


def test_every_placement_is_equally_likely():
    task = TaskConfig(mask_proportion=0.6, mask_consecutive=2)  # 7 tokens: 2 disjoint runs of 2
    count = 6000
    chosen, start = choose(torch.full((count,), 7), torch.arange(count), 7, 1, task, CPU)
    seen = Counter(tuple(sorted(set(row[mark].tolist()))) for row, mark in zip(start, chosen, strict=True))
    places = [(a, b) for a, b in combinations(range(6), 2) if b - a >= 2]
    assert set(seen) == set(places)
    assert all(abs(seen[place] / count - 1 / len(places)) < 0.02 for place in places)


def test_shares_of_the_treatments():
    """80 / 10 / 10 over utterances, all chosen tokens of one alike; a replacement is another token of the utterance."""
    count, n = 4000, 20
    features = torch.arange(1.0, n + 1).expand(count, n)[..., None].contiguous()
    masked, chosen = mask_tokens(features, torch.full((count,), n), torch.arange(count), 5, TaskConfig())
    assert (chosen.sum(1) == 3).all()
    zeroed = ((masked[..., 0] == 0) & chosen).sum(1)
    changed = ((masked != features)[..., 0] & chosen).sum(1)
    assert set(zeroed.tolist()) == {0, 3} and set(changed.tolist()) == {0, 3}
    zero, left = float((zeroed == 3).double().mean()), float((changed == 0).double().mean())
    assert abs(zero - 0.8) < 0.02 and abs(left - 0.1) < 0.015
    assert torch.equal(masked[~chosen], features[~chosen])


def test_threshold_covers_all():
    assert threshold(1.0) == 2**BITS and threshold(0.0) == 0
