"""What the figures share: how an attention map is shown, and how an image is written."""

import contextlib
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from saat.errors import SaatError

COLOURS = {"Diagonal": "#1f77b4", "Sparse": "#2ca02c", "Increasing": "#d62728", "Decreasing": "#ff9f1c"}
BRIGHTNESS = "brightness: square root of the weight over the map's largest; queries down, keys right"


def canvas(width: float, height: float) -> Figure:
    """An empty figure, inches; it needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_map(axis: Axes, weights: Tensor) -> None:
    """Draws one map (T, T), queries down, keys right, on its own scale; the root shows what is small beside a peak."""
    shown = (weights / weights.max()).clamp_min(0).sqrt().cpu().numpy()
    axis.imshow(shown, cmap="magma", vmin=0, vmax=1, interpolation="antialiased", aspect="equal")
    axis.set_xticks([0, len(weights) - 1])
    axis.set_yticks([0, len(weights) - 1])
    axis.tick_params(labelsize=6, length=2)


def frame(axis: Axes, category: str) -> None:
    """A border in the category's colour."""
    for spine in axis.spines.values():
        spine.set_color(COLOURS[category])
        spine.set_linewidth(2.5)


def category_legend(figure: Figure) -> None:
    """Which colour is which category, below the figure."""
    handles = [Patch(color=colour, label=category) for category, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)


def write(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """The figure as an image file, whole or not at all; returns its path.

    Errors: SaatError when it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=dpi)
        os.replace(part, path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise SaatError(f"cannot write {path}: {error}") from error
    return path
