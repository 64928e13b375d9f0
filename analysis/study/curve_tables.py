"""Learning curves as numbers: what each model reached when, and where one overtakes another."""

from itertools import combinations

import numpy as np

from saat.analysis.study.results import PROBES
from saat.analysis.study.tables import TITLES, Table, percent

Curve = list[tuple[int, float, float]]  # steps, processor seconds, value
STEPS, SECONDS = 0, 1  # what a curve is drawn against: places in its points
LOSS = "held_out"


def reached(curves: dict[str, dict[str, Curve]]) -> Table:
    """A row for each model and probed step: held-out loss, and accuracies on the test split."""
    panels = _panels(curves)
    rows = []
    for label, lines in curves.items():
        values = {panel: {step: value for step, _, value in lines.get(panel, [])} for panel in panels}
        spent = {step: seconds for line in lines.values() for step, seconds, _ in line}
        for step in sorted({step for panel in panels if panel != LOSS for step in values[panel]}):
            cells = [_cell(panel, values[panel].get(step)) for panel in panels]
            rows.append([label, str(step), f"{spent[step] / 60:.1f}", *cells])
    return Table("What was reached when", ["upstream", "steps", "processor minutes", *map(_title, panels)], rows)


def crossings(curves: dict[str, dict[str, Curve]]) -> Table:
    """A row for each pair of models and measure: from when on which of the two is ahead."""
    rows = []
    for one, other in combinations(curves, 2):
        for panel in _panels(curves):
            a, b = curves[one].get(panel), curves[other].get(panel)
            if not a or not b:
                continue
            if panel == LOSS:
                a, b = ([(step, seconds, -value) for step, seconds, value in line] for line in (a, b))
            cells = []
            for axis, scale, unit in ((STEPS, 1, "steps"), (SECONDS, 60, "min")):
                found = ahead(a, b, axis)
                if found is None:
                    cells.append("-")
                    continue
                leads, since, until = found
                begin = "always" if since is None else f"from {since / scale:.0f} {unit} on"
                cells.append(f"{one if leads else other}, {begin} (to {until / scale:.0f} {unit})")
            rows.append([one, other, _title(panel), *cells])
    columns = ["upstream", "and", "measure", "ahead, at equal steps", "ahead, at equal processor time"]
    note = (
        "One run each, drawn straight between the points; “from … on”: until the end, in brackets, of what both have."
    )
    return Table("Which of two is ahead", columns, rows, note)


def ahead(a: Curve, b: Curve, axis: int) -> tuple[bool, float | None, float] | None:
    """Which of two curves, more being better, is ahead at the end of what both have, and from where on.

    Args:
        axis: STEPS or SECONDS.

    Returns: whether a is (at a tie, too); since where it has been so until the end, None: from where both begin;
        that end. None where the two have no range in common.
    """
    (xs, values), (other_xs, other_values) = (zip(*((p[axis], p[2]) for p in line), strict=True) for line in (a, b))
    begin, end = max(xs[0], other_xs[0]), min(xs[-1], other_xs[-1])
    if begin > end:
        return None
    at = np.unique(np.clip([*xs, *other_xs], begin, end))
    gap = np.interp(at, xs, values) - np.interp(at, other_xs, other_values)
    leads = bool(gap[-1] >= 0)
    behind = np.flatnonzero(gap < 0 if leads else gap >= 0)
    if not len(behind):
        return leads, None, float(end)
    last = behind[-1]  # the gap changes its sign between here and the next
    share = gap[last] / (gap[last] - gap[last + 1])
    return leads, float(at[last] + share * (at[last + 1] - at[last])), float(end)


def _panels(curves: dict[str, dict[str, Curve]]) -> list[str]:
    names = {name for lines in curves.values() for name in lines}
    return [name for name in (LOSS, *(f"{probe} test" for probe in PROBES)) if name in names]


def _title(panel: str) -> str:
    return "held-out loss" if panel == LOSS else TITLES[panel.removesuffix(" test")]


def _cell(panel: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if panel == LOSS else percent(value)
