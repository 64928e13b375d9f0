"""Measures of attention maps on maps whose values are known, and the rule that says a head's category."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saat.analysis.heads import (
    CATEGORIES,
    MEASURES,
    categorise,
    departure,
    describe,
    diagonality,
    distance_ratio,
    globalness,
    slope,
    trend,
    verticality,
)
from saat.upstream.attention.patterns import head_patterns, increasing, normalise_rows, shifted

HERE = Path(__file__).parent
OURS = ["Diagonal"] * 5 + ["Increasing", "Decreasing"] + ["Sparse"] * 5


def names(maps: torch.Tensor) -> list[str]:
    return [CATEGORIES[i] for i in categorise(maps).index.reshape(-1)]


def uniform(n: int) -> torch.Tensor:
    return torch.full((n, n), 1 / n, dtype=torch.float64)


def one_column(n: int, at: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.full((n,), at), n).double()


def test_identity_and_its_neighbour():
    n = 50
    eye, previous = shifted(n, 0), shifted(n, -1)
    assert globalness(eye) == 0 and diagonality(eye) == 0
    assert verticality(eye) == pytest.approx(-math.log(n)) and slope(eye) == pytest.approx(0, abs=1e-9)
    # All rows but the first, which is clamped, look one place back.
    assert diagonality(previous) == pytest.approx(-(n - 1) / n**2)
    assert distance_ratio(eye) == 0 and trend(eye) == pytest.approx(0, abs=1e-6)


def test_uniform_weights():
    n = 50
    maps = uniform(n)
    assert globalness(maps) == pytest.approx(math.log(n)) and verticality(maps) == pytest.approx(-math.log(n))
    assert diagonality(maps) == pytest.approx(-(1 - 1 / n**2) / 3)
    assert slope(maps) == pytest.approx(0, abs=1e-9) and departure(maps) == pytest.approx(0, abs=1e-9)
    assert distance_ratio(maps) == pytest.approx(1) and trend(maps) == 0


def test_one_column_is_vertical():
    n = 50
    assert verticality(one_column(n, 20)) == 0 and globalness(one_column(n, 20)) == 0
    assert distance_ratio(one_column(n, 20)) == pytest.approx(1)
    assert slope(one_column(n, n - 1)) == pytest.approx(6, rel=0.03)
    assert slope(one_column(n, 0)) == pytest.approx(-6, rel=0.03)


@pytest.mark.parametrize("n", [20, 200])
def test_slope_of_a_ramp(n):
    ramp = normalise_rows((torch.arange(n).double() + 0.5).expand(n, n))
    assert slope(ramp) == pytest.approx(2) and slope(ramp.flip(-1)) == pytest.approx(-2)
    assert trend(ramp) == pytest.approx(1) and trend(ramp.flip(-1)) == pytest.approx(-1)
    # What TREND_SHARE supposes: weights with this slope diverge from uniform by slope^2 / 24 nats, about.
    gentle = normalise_rows((torch.arange(n).double() + 3 * n).expand(n, n))
    assert departure(gentle) == pytest.approx(float(slope(gentle)) ** 2 / 24, rel=0.03)


@pytest.mark.parametrize("n", [20, 50, 120, 300])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.2])
def test_the_patterns_ours_starts_from(n, eps):
    maps = (1 - eps) * head_patterns(12, n, 0) + eps / n
    assert names(maps) == OURS
    assert not categorise(maps).flat.any()


def test_patterns_cut_to_a_shorter_utterance():
    logits = (0.99 * head_patterns(12, 200, 0) + 0.01 / 200).log()
    assert names(logits[:, :150, :150].softmax(-1)) == OURS


def test_uniform_weights_are_sparse_and_flat():
    for maps in (uniform(50), uniform(1), 0.995 * uniform(50) + 0.005 * increasing(50)):
        found = categorise(maps)
        assert found.flat
    assert names(uniform(50)) == ["Sparse"] and categorise(uniform(50)).clearness == pytest.approx(0, abs=1e-6)


def test_stripes_are_sparse_where_few_and_increasing_where_they_get_brighter():
    n = 90
    few = sum(one_column(n, at) for at in (50, 65, 75, 85)) / 4
    many = normalise_rows(sum(at * one_column(n, at) for at in range(1, n, 2)))
    striped = torch.stack([few, many, many.flip(-1)]) * 0.5 + 0.5 / n
    assert names(striped) == ["Sparse", "Increasing", "Decreasing"]


def test_reversed_in_time():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(200, 30, 30, generator=generator) + torch.linspace(-2, 2, 200)[:, None, None] * torch.linspace(
        -1, 1, 30
    )
    maps = maps.double().softmax(-1)
    swapped = {"Increasing": "Decreasing", "Decreasing": "Increasing"}
    before, after = names(maps), names(maps.flip(-1, -2))
    assert [swapped.get(name, name) for name in before] == after and len(set(before)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_is_not_read(dtype):
    maps = head_patterns(12, 40, 0).to(dtype)
    padded = torch.full((12, 64, 64), torch.nan, dtype=dtype)
    padded[:, :40, :40] = maps
    alone, within = describe(maps), describe(padded, 40)
    assert set(alone) == {*MEASURES, "category", "clearness", "flat"}
    assert all(torch.equal(alone[key], within[key]) for key in alone)
    # Any leading dimensions: a map says the same alone as among others.
    assert torch.equal(describe(maps[3])["slope"], alone["slope"][3])


def labelled() -> list[tuple[dict, torch.Tensor]]:
    entries = json.loads((HERE / "hand_labels.json").read_text())["labels"]
    with np.load(HERE / "hand_labelled_maps.npz", allow_pickle=False) as stored:
        roots = {name: torch.from_numpy(stored[name]).double() for name in stored.files}
    return [(entry, normalise_rows(roots[entry["map"]].square())) for entry in entries]


def test_agreement_with_hand_labels():
    maps = labelled()
    assert len(maps) == 24 and {entry["label"] for entry, _ in maps} == set(CATEGORIES)
    differ = {entry["map"]: names(one)[0] for entry, one in maps if names(one) != [entry["label"]]}
    # 21 of 24. A flat map, and two whose diagonal is in one half of the utterance only.
    assert differ == {"07": "Sparse", "11": "Sparse", "13": "Decreasing"}
