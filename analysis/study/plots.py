"""Figure 5, and the learning curves."""

from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from saat.analysis.drawing import canvas, write
from saat.analysis.study.results import PROBES, mean_and_deviation
from saat.analysis.study.tables import TITLES
from saat.upstream.attention import REGISTRY

FAMILIES = (  # of upstreams, by prefix; their colours
    ("saat_qk", "tab:blue"),
    ("saat_qnf", "tab:purple"),
    ("saat_q", "tab:blue"),
    ("saat_sparse", "tab:green"),
    ("saat_syn", "tab:orange"),
    ("saat_ours", "tab:red"),
    ("saat_", "tab:purple"),  # hashing
)


def accuracy_against_time(rows: list[dict[str, Any]], path: Path) -> Path | None:
    """Figure 5: a probe's accuracy against time, a point a variant; None without timings.

    One panel for the speaker of an utterance, as in the paper, and one for the best phoneme probe there is.
    """
    points: dict[str, list[dict]] = {}
    for row in rows:
        if row["split"] == "test" and row["upstream"] in REGISTRY and row["inference_ratio_to_qk"]:
            points.setdefault(row["upstream"], []).append(row)
    if not points:
        return None
    present = [probe for probe in PROBES if all(r[probe] is not None for own in points.values() for r in own)]
    shown = [probe for probe in ("speaker_utterance", "phoneme_2hidden") if probe in present] or present[:1]
    figure = canvas(6.2 * len(shown), 5.2)
    for axis, probe in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        places = {}
        for name, own in points.items():
            mean, deviation = mean_and_deviation([100 * row[probe] for row in own])
            places[name] = (own[0]["inference_ratio_to_qk"], mean)
            colour = next(colour for prefix, colour in FAMILIES if name.startswith(prefix))
            axis.errorbar(*places[name], yerr=deviation, fmt="o", color=colour, capsize=3)
        _labels(axis, places)
        axis.set_xlabel("time of inference, relative to saat_qk")
        axis.set_ylabel(f"{TITLES[probe]}, test accuracy (%)")
        axis.grid(alpha=0.3)
    figure.suptitle("Accuracy against time (above and to the left is better)", fontsize=11)
    return write(figure, path)


def _labels(axis: Axes, places: dict[str, tuple[float, float]]) -> None:
    """A name to the right of each point, moved up or down off other names and points."""
    axis.margins(x=0.24, y=0.1)
    axis.autoscale_view()
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    line, reach = (high - low) / 26, (right - left) * 0.3
    written: list[tuple[float, float]] = []
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        points = [py for other, (px, py) in places.items() if other != name and 0 < px - x < reach / 2]
        beside = [ny for nx, ny in written if abs(nx - x) < reach]
        moves = (side * step * line / 4 for step in count() for side in (1, -1))
        at = next(
            y + move
            for move in moves
            if all(abs(y + move - py) >= 0.7 * line for py in points)
            and all(abs(y + move - ny) >= line for ny in beside)
        )
        written.append((x, at))
        axis.annotate(
            name.removeprefix("saat_"),
            (x, y),
            xytext=(x + (right - left) * 0.02, at),
            fontsize=8,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},  # over error bars
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.4, "relpos": (0, 0.5)},
        )


def learning_curves(curves: dict[str, dict[str, list]], path: Path) -> Path | None:
    """Loss and the probes' accuracies against steps (above) and processor seconds (below); None without curves."""
    names = {name for lines in curves.values() for name in lines}
    losses = [name for name in ("loss", "held_out") if name in names][-1:]
    panels = [*losses, *(f"{probe} test" for probe in PROBES if f"{probe} test" in names)]
    if not panels:  # none has begun, or logged anything yet
        return None
    figure = canvas(3.6 * len(panels), 6.4)
    axes = figure.subplots(2, len(panels), squeeze=False, sharey="col")
    for column, panel in enumerate(panels):
        probe = panel.removesuffix(" test")
        for label, lines in sorted(curves.items()):
            points = lines.get(panel, [])
            scale = 100 if probe in TITLES else 1
            for row, place in ((0, 0), (1, 1)):
                xs = [point[place] / (60 if row else 1) for point in points]
                axes[row, column].plot(
                    xs, [scale * point[2] for point in points], marker=".", markersize=4, label=label
                )
        title = f"{TITLES[probe]} (%)" if probe in TITLES else "loss on held-out utterances"
        axes[0, column].set_title(title if panel != "loss" else "loss", fontsize=10)
        axes[0, column].set_xlabel("steps")
        axes[1, column].set_xlabel("processor minutes")
        for row in (0, 1):
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return write(figure, path)
