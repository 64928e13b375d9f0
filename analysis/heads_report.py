"""The heads of a model over many utterances: a table, and their maps in one picture."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saat.analysis.drawing import BRIGHTNESS, canvas, category_legend, frame, show_map, write
from saat.analysis.heads import CATEGORIES, MEASURES, categorise, describe
from saat.errors import SaatError


def summarise(upstream: str, maps: Iterable[tuple[Path | None, Tensor]]) -> tuple[list[dict[str, Any]], Tensor]:
    """The maps of many utterances, head by head.

    Args:
        upstream: its name.
        maps: what `corpus_maps` yields.

    Returns: one object a layer and head: `layer` and `head` counting from 1 (layer 0: one set of weights for all
    layers), the measures of saat.analysis.heads (means over utterances), `category` (the most frequent), `agree` and
    `flat` (shares of the utterances of that category, and with a flat map), `utterances`; and the longest utterance's
    maps, (layers, A, n, n).

    Errors: SaatError where there are no maps.
    """
    found, longest, dependent = [], None, True
    for file, layers in maps:
        dependent = file is not None
        found.append(describe(layers))
        if longest is None or layers.shape[-1] > longest.shape[-1]:
            longest = layers
    if longest is None:
        raise SaatError("no utterances to analyse")
    values = {key: torch.stack([one[key] for one in found]) for key in found[0]}  # (utterances, layers, A)
    rows = []
    for layer in range(longest.shape[0]):
        for head in range(longest.shape[1]):
            own = {key: value[:, layer, head] for key, value in values.items()}
            category, count = Counter(own["category"].tolist()).most_common(1)[0]
            rows.append(
                {
                    "upstream": upstream,
                    "layer": layer + 1 if dependent or longest.shape[0] > 1 else 0,
                    "head": head + 1,
                    **{measure: float(own[measure].mean()) for measure in MEASURES},
                    "category": CATEGORIES[category],
                    "agree": count / len(found),
                    "flat": float(own["flat"].double().mean()),
                    "utterances": len(found) if dependent else 0,
                }
            )
    return rows, longest


def as_table(rows: list[dict[str, Any]]) -> str:
    """For reading in a terminal: the rows, then how many heads of each category a layer has, and how many are flat."""
    titles = ("layer", "head", "diagonality", "globalness", "verticality", "slope", "category", "agree", "flat")
    lines = [titles]
    for row in rows:
        numbers = [f"{row[key]:.3f}" for key in titles[2:6]]
        shares = [f"{row[key]:.0%}" for key in ("agree", "flat")]
        lines.append((str(row["layer"] or "all"), str(row["head"]), *numbers, row["category"], *shares))
    text = _aligned(lines, left={6})
    counts = Counter((row["layer"], row["category"]) for row in rows)
    summary = [("layer", *CATEGORIES, "flat")]
    for layer in dict.fromkeys(row["layer"] for row in rows):
        flat = sum(row["flat"] > 0.5 for row in rows if row["layer"] == layer)
        summary.append((str(layer or "all"), *(str(counts[layer, category]) for category in CATEGORIES), str(flat)))
    return f"{text}\n\nheads of each category, and among them flat on most utterances\n{_aligned(summary, left=set())}"


def _aligned(lines: list[tuple[str, ...]], left: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = (
        [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def draw(maps: Tensor, path: Path, title: str) -> Path:
    """Every head's map, (layers, A, n, n), a row a layer, a column a head, framed in the colour of its category."""
    layers, heads = maps.shape[:2]
    categories = categorise(maps).index
    figure = canvas(1.05 * heads + 0.6, 1.12 * layers + 1.2)
    axes = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for layer in range(layers):
        for head in range(heads):
            axis = axes[layer, head]
            show_map(axis, maps[layer, head])
            frame(axis, CATEGORIES[categories[layer, head]])
            if layer == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
        axes[layer, 0].set_ylabel(f"layer {layer + 1}" if layers > 1 else "all layers", fontsize=8)
    figure.suptitle(f"{title}, one utterance of {maps.shape[-1]} tokens; {BRIGHTNESS}", fontsize=9)
    category_legend(figure)
    return write(figure, path)
