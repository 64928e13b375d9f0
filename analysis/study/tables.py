"""The paper's Tables 1 and 2, filled with what a study found."""

import math
from dataclasses import dataclass
from typing import Any

from saat.analysis.paper import PAPER_ACCURACY, PAPER_FIELDS, PAPER_TIME
from saat.analysis.study.results import PROBES, mean_and_deviation
from saat.analysis.study.subjects import SUBJECTS
from saat.upstream.attention import REGISTRY
from saat.upstream.attention.lsh import LSH
from saat.upstream.attention.sparse import Sparse

TITLES = {
    "speaker_utterance": "speaker utt.",
    "speaker_frame": "speaker frame",
    "phoneme_1hidden": "phoneme 1-hidden",
    "phoneme_2hidden": "phoneme 2-hidden",
}
NOTE = (
    "Fields: as in the paper. Theoretical: multiply-adds of a layer for an utterance's attention weights, derived from "
    "the algorithms, not the paper's print; n tokens, H hidden size, A heads, d' hashed dimensions, b bottleneck. "
    "GFLOP: of a call, six layers, 2 operations a multiply-add; counted: by torch, with the input projection. "
    "ms: medians, in turn in one process; MB: peak, on top of the model."
)


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    title: str
    columns: list[str]
    rows: list[list[str]]  # numbers begin their cells, so that columns can be sorted
    note: str = ""


def accuracies(rows: list[dict[str, Any]], split: str = "test") -> Table | None:
    """Table 2: accuracies in percent, mean and deviation over seeds, beside the paper's. None without such a split."""
    rows = [row for row in rows if row["split"] == split]
    probes = [probe for probe in PROBES if any(row[probe] is not None for row in rows)]
    if not probes:
        return None
    chance = {probe: next(row["chance"][probe] for row in rows if row[probe] is not None) for probe in probes}
    columns = ["upstream", "seeds"]
    for probe in probes:
        columns += [TITLES[probe], *(["paper"] if split == "test" else [])]
    table = [["chance", "-", *_interleaved([percent(chance[probe]) for probe in probes], ["-"] * 4, split)]]
    for label, subject in SUBJECTS.items():
        own = [row for row in rows if row["upstream"] == label]
        if not own:
            continue
        cells = [_cell([row[probe] for row in own if row[probe] is not None]) for probe in probes]
        paper = PAPER_ACCURACY.get(label)
        of_paper = [percent(paper[PROBES.index(probe)]) if paper else "-" for probe in probes]
        name = f"{label} ({REGISTRY[subject.upstream].paper_row})" if label in REGISTRY else label
        table.append([name, str(len(own)), *_interleaved(cells, of_paper, split)])
    where = "test utterances" if split == "test" else "utterances of speakers that the probes were not trained on"
    return Table(
        f"Table 2: accuracy in percent on {where}",
        columns,
        table,
        "Mean ± deviation over seeds, where there are several: of the pre-training, with one for its probes; where "
        "nothing is pre-trained, of the probes. Chance: the training split's most frequent class.",
    )


def _interleaved(measured: list[str], paper: list[str], split: str) -> list[str]:
    if split != "test":
        return measured
    return [cell for pair in zip(measured, paper, strict=False) for cell in pair]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean, deviation = mean_and_deviation(values)
    return percent(mean) + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def multiply_adds(upstream: str, n: int, hidden: int = 768, heads: int = 12) -> float:
    """Of one layer for an utterance of n tokens (SPEC section 5), feed-forward 4 hidden wide, default options."""
    entry = REGISTRY[upstream]
    config = entry.config() if entry.config else None
    inner, head = 4 * hidden, hidden // heads
    attended = float(n)  # keys that a query's values are summed over
    weights = 0.0
    if issubclass(entry.attention, Sparse):
        attended = keys_seen(upstream, n)
    if entry.complexity.startswith("2 n H^2"):
        weights = 2 * n * hidden**2 + n**2 * hidden
    elif entry.complexity.startswith("n H^2"):
        weights = n * hidden**2 + n * attended * hidden
    elif entry.complexity.startswith("n H b"):
        maps = 1 if upstream == "saat_syn_dense" else heads
        weights = n * hidden * config.bottleneck + maps * n**2 * config.bottleneck
    if issubclass(entry.attention, LSH):
        extra = getattr(config, "m", entry.attention.extra)
        weights += heads * n**2 * (head + extra) * config.n_hashes
    return 2 * n * hidden**2 + 2 * n * hidden * inner + n * attended * hidden + weights


def keys_seen(upstream: str, n: int) -> float:
    """Keys that a query sees, averaged over queries and heads (SPEC section 2.2)."""
    span = math.isqrt(n)
    if upstream == "saat_sparse_strided":
        local = sum(min(n - 1, i + span) - max(0, i - span) + 1 for i in range(n)) / n
        distant = sum(len(range(i % span, n, span)) for i in range(n)) / n
    else:
        blocks = [min(span, n - start) for start in range(0, n, span)]
        local = sum(size * size for size in blocks) / n
        distant = n // span
    return (local + distant) / 2


def times(inference: list[dict[str, Any]], training: list[dict[str, Any]]) -> Table:
    """Table 1: fields of application, theoretical and practical time, memory."""
    trained = {entry["upstream"]: entry for entry in training}
    rows = []
    for entry in inference:
        name = entry["upstream"]
        other = trained.get(name)
        derived = 2 * 6 * entry["batch"] * multiply_adds(name, entry["length"], entry["hidden"])
        cost = REGISTRY[name].complexity
        rows.append(
            [
                f"{name} ({REGISTRY[name].paper_row})",
                PAPER_FIELDS[name],
                cost,
                _in_training(name, cost),
                f"{derived / 1e9:.1f}",
                *("-" if each is None else f"{each['flops'] / 1e9:.1f}" for each in (entry, other)),
                f"{1000 * entry['seconds']:.0f} ± {1000 * entry['spread']:.0f}",
                f"{entry['ratio_to_qk']:.3f}",
                f"{PAPER_TIME[name] / PAPER_TIME['saat_qk']:.3f}",
                *(("-", "-") if other is None else (f"{1000 * other['seconds']:.0f}", f"{other['ratio_to_qk']:.3f}")),
                *(megabytes(each) for each in (entry, other)),
            ]
        )
    first = inference[0]
    columns = ["upstream", "fields", "theoretical, inference", "theoretical, training"]
    columns += ["GFLOP derived", "GFLOP counted", "GFLOP counted, training"]
    columns += ["ms", "of qk", "of qk, paper", "ms, training", "of qk, training"]
    columns += ["MB", "MB, training"]
    where = f"{first['length']} tokens, batch {first['batch']}, {first['hidden']} wide, {first['dtype']}, "
    where += f"{first['device']}, {first['threads']} threads"
    return Table(f"Table 1: time and memory ({where})", columns, rows, NOTE)


def _in_training(upstream: str, cost: str) -> str:
    """Forward and backward: the gradient takes twice the products; none flows through hashing or into a fixed R's."""
    if not REGISTRY[upstream].input_dependent:
        return "0 (A n^2 once a step for R's softmax)"
    if issubclass(REGISTRY[upstream].attention, LSH):
        return "3 (n H^2 + n^2 H) + A n^2 d'"
    return f"3 ({cost})"


def megabytes(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None or entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:.0f}"
