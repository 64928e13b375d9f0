"""The figures of the study."""

import pytest
from matplotlib.text import Text

from saat.analysis.drawing import canvas
from saat.analysis.study.plots import _labels


@pytest.mark.parametrize(
    "places",
    [
        {"saat_sign_alsh": (1.51, 35.1), "saat_xbox": (1.49, 34.2), "saat_qk": (1, 42.6), "saat_ours": (0.8, 84)},
        {"saat_sparse_fixed": (0.82, 55.8), "saat_syn_mdense": (0.89, 56), "saat_ours": (0.8, 62), "saat_qk": (1, 51)},
        {"saat_ours": (0, 1)} | {f"saat_{n}": (1 + n / 1000, n / 1000) for n in range(6)},
    ],
)
def test_names_beside_points(places):
    """No name lies on another one, or on a point."""
    figure = canvas(6.2, 5.2)
    axis = figure.subplots()
    axis.plot(*zip(*places.values(), strict=True), "o")
    _labels(axis, places)
    figure.canvas.draw()
    assert {text.get_text() for text in axis.texts} == {name.removeprefix("saat_") for name in places}
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without their lines
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    points = axis.transData.transform(list(places.values()))
    assert not any(box.padded(2).contains(*point) for box in boxes for point in points)
