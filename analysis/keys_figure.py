"""Which keys each attention lets a query see (the paper's Figure 1), read off `weights()`."""

from dataclasses import fields
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from saat.analysis.drawing import canvas, write
from saat.errors import SaatError
from saat.upstream.attention import REGISTRY, Variant
from saat.upstream.attention.sparse import Sparse
from saat.upstream.config import model_config

COLUMNS = 5
SEEN = ListedColormap(["#f4f4f4", "#1f4e79"])


def keys_figure(path: str | Path, length: int = 64) -> Path:
    """One panel a variant, the sparse ones two (a local and a global head): query down, key right, dark where seen.

    The input is random and so are the weights: what is shown is what the algorithm allows, not what was learnt. LSH
    gets `num_keys` of an eighth of the tokens, so that at this length one sees a selection.

    Args:
        path: the image; its ending says the format.
        length: tokens.

    Errors: SaatError when length is below 8, or the image cannot be written.
    """
    if length < 8:
        raise SaatError(f"keys_figure: length must be at least 8 tokens, not {length}")
    panels = [panel for entry in REGISTRY.values() if entry.attention for panel in seen_keys(entry, length)]
    rows = -(-len(panels) // COLUMNS)
    figure = canvas(2.25 * COLUMNS, 2.6 * rows + 0.4)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis, (title, seen) in zip(axes.flat, panels, strict=False):
        _panel(axis, title, seen)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.supxlabel("key (token)", fontsize=10)
    figure.supylabel("query (token)", fontsize=10)
    return write(figure, path)


@torch.no_grad()
def seen_keys(entry: Variant, length: int) -> list[tuple[str, Tensor]]:
    """(title, (length, length) bool, row the query) of its first head; sparse variants: a local, a global one."""
    overrides = {"transformer": {"hidden_size": 96, "intermediate_size": 96, "max_length": length}}
    if any(field.name == "num_keys" for field in fields(entry.config)):
        overrides["attention"] = {"num_keys": length // 8}
    config = model_config(entry.name, (overrides, "the figure of keys"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = entry.attention(config.transformer, config.attention).eval()
        hidden = torch.randn(1, length, config.transformer.hidden_size)
    seen = attention.weights(hidden, torch.tensor([length]))[0] > 0
    if isinstance(attention, Sparse):
        row = entry.paper_row.removesuffix(")")
        return [(f"{row}, local)", seen[0]), (f"{row}, global)", seen[attention.num_local])]
    return [(entry.paper_row, seen[0])]


def _panel(axis: Axes, title: str, seen: Tensor) -> None:
    length = len(seen)
    axis.imshow(seen.numpy(), cmap=SEEN, vmin=0, vmax=1, interpolation="none")
    axis.set_title(title, fontsize=10)
    counts = seen.sum(-1)
    fewest, most = int(counts.min()), int(counts.max())
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    axis.set_xlabel("every key" if fewest == length else f"{number} of {length} keys", fontsize=8)
    axis.set_xticks([0, length - 1])
    axis.set_yticks([0, length - 1])
    axis.tick_params(labelsize=7, length=2)
