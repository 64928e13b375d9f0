"""`saat list`: what each upstream is and can do."""

from typing import Any

from saat.upstream.attention import REGISTRY


def describe_all() -> list[dict[str, Any]]:
    """One object an upstream: name, paper row, complexity of a layer's attention weights, capabilities."""
    return [
        {
            "name": entry.name,
            "paper_row": entry.paper_row,
            "complexity": entry.complexity,
            "pretrainable": entry.attention is not None,
            "any_length": entry.attention is None or not entry.attention.limited,
            "input_dependent": entry.input_dependent,
        }
        for entry in REGISTRY.values()
    ]


def as_table(entries: list[dict[str, Any]]) -> str:
    """For reading in a terminal."""
    rows = [("upstream", "paper's row", "attention weights cost", "pre-train", "longer than L", "depend on input")]
    for e in entries:
        length = "as they are" if e["any_length"] else "windows"
        depend = "yes" if e["input_dependent"] else "no"
        if not e["pretrainable"]:
            length, depend = "-", "-"
        rows.append((e["name"], e["paper_row"], e["complexity"], "yes" if e["pretrainable"] else "no", length, depend))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = "n tokens, H hidden size, A heads, d' hashed dimensions, b bottleneck; multiply-adds of a layer"
    return "\n".join([*lines, "", note])
