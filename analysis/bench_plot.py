"""Plots of `saat bench`: time against length, log-log; or, at one length, the ratio to saat_qk beside the paper's."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from saat.analysis.drawing import canvas, write
from saat.analysis.paper import PAPER_TIME
from saat.errors import SaatError


def slope(lengths: list[int], seconds: list[float]) -> float:
    """Of the least-squares line through the logarithms: 1 where time grows as length, 2 where as its square."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def plot(entries: list[dict], path: Path) -> None:
    """Writes the image; its ending says the format.

    Errors: SaatError when it cannot be written.
    """
    lengths = sorted({e["length"] for e in entries})
    figure = canvas(10, 6)
    if len(lengths) > 1:
        _scaling(figure, entries)
    else:
        _bars(figure, entries)
    first = entries[0]
    size = "" if len(lengths) > 1 else f"{lengths[0]} tokens, "
    machine = f"{first['device']}, {first['threads']} threads"
    figure.suptitle(f"{first['mode']}, {size}batch {first['batch']}, {first['dtype']}, {machine}", fontsize=10)
    write(figure, path)


def _scaling(figure: Figure, entries: list[dict]) -> None:
    axis = figure.subplots()
    styles = ("-", "--", ":", "-.")
    for i, name in enumerate(dict.fromkeys(e["upstream"] for e in entries)):
        own = sorted((e["length"], e["seconds"]) for e in entries if e["upstream"] == name)
        lengths, seconds = [n for n, _ in own], [s for _, s in own]
        # Of the longer half: what it tends to, and not by two points alone, on machines whose speed varies.
        half = min(len(own) // 2, len(own) - 2)
        label = f"{name} ({slope(lengths[half:], seconds[half:]):.2f})" if len(own) > 1 else name
        axis.plot(lengths, seconds, marker="o", markersize=3, linestyle=styles[i // 10 % 4], label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = sorted({e["length"] for e in entries})
    axis.set_xticks(ticks, labels=[str(n) for n in ticks])
    axis.minorticks_off()
    axis.set_xlabel("tokens")
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, title="slope, longer half of the lengths", loc="upper left")


def _bars(figure: Figure, entries: list[dict]) -> None:
    axis = figure.subplots()
    names = [e["upstream"] for e in entries][::-1]
    ours = [e["ratio_to_qk"] for e in entries][::-1]
    if None in ours:
        raise SaatError("the plot shows ratios to saat_qk: add saat_qk to --upstreams")
    paper = [PAPER_TIME[name] / PAPER_TIME["saat_qk"] if name in PAPER_TIME else 0.0 for name in names]
    places = range(len(names))
    axis.barh([p + 0.2 for p in places], ours, 0.4, label="measured")
    axis.barh([p - 0.2 for p in places], paper, 0.4, label="the paper's, on its GPU", color="lightgray")
    for place, value in zip(places, ours, strict=True):
        axis.text(value + 0.01, place + 0.2, f"{value:.2f}", va="center", fontsize=8)
    axis.set_yticks(list(places), labels=names)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xlabel("time, relative to saat_qk")
    axis.legend(loc="lower right")
