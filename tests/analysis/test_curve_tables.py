"""Learning curves as numbers."""

import pytest

from saat.analysis.study.curve_tables import SECONDS, STEPS, ahead, crossings, reached


def curve(*values, seconds=60.0):
    """A point each 100 steps, each of which takes so many seconds."""
    return [(100 * i, seconds * i, value) for i, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0.1, 0.2, 0.6), (0.3, 0.3, 0.4), (True, 200 + 100 / 3, 300)),  # behind by 0.1, then ahead by 0.2
        ((0.3, 0.3, 0.4), (0.1, 0.2, 0.6), (False, 200 + 100 / 3, 300)),
        ((0.5, 0.1, 0.6), (0.2, 0.2, 0.2), (True, 220, 300)),  # the last time counts
        ((0.5, 0.5), (0.2, 0.2), (True, None, 200)),
        ((0.2, 0.2), (0.5, 0.5), (False, None, 200)),
        ((0.2, 0.2), (0.2, 0.2), (True, None, 200)),
        ((0.1, 0.3), (0.2, 0.2, 0.9), (True, 150, 200)),  # as far as both go
    ],
)
def test_ahead(a, b, expected):
    leads, since, end = ahead(curve(*a), curve(*b), STEPS)
    assert (leads, since, end) == (expected[0], expected[1] and pytest.approx(expected[1]), expected[2])


def test_ahead_at_equal_time():
    """The slower one is compared with what the faster one had reached by then."""
    slow, fast = curve(0.3, 0.5, 0.7, seconds=120), curve(0.2, 0.4, 0.6)
    assert ahead(slow, fast, STEPS) == (True, None, 300)
    assert ahead(slow, fast, SECONDS) == (False, None, 180)
    assert ahead(curve(0.1, 0.2), [(500, 900.0, 0.3)], SECONDS) is None


def test_tables():
    curves = {
        "saat_ours": {"held_out": curve(0.5, 0.4, 0.3), "speaker_utterance test": curve(0.5, 0.6, 0.7)},
        "saat_qk": {
            "held_out": curve(0.7, 0.5, 0.2, seconds=120),
            "speaker_utterance test": curve(0.1, 0.2, seconds=120),
        },
    }
    table = reached(curves)
    assert table.columns == ["upstream", "steps", "processor minutes", "held-out loss", "speaker utt."]
    assert table.rows[1] == ["saat_ours", "200", "2.0", "0.400", "60.0"]
    assert table.rows[-1] == ["saat_qk", "200", "4.0", "0.500", "20.0"]  # 300 was not probed
    loss, speaker = crossings(curves).rows
    assert loss == ["saat_ours", "saat_qk", "held-out loss", "saat_qk, from 250 steps on (to 300 steps)", loss[4]]
    assert loss[4] == "saat_ours, always (to 3 min)"
    assert speaker[3:] == ["saat_ours, always (to 200 steps)", "saat_ours, always (to 3 min)"]
