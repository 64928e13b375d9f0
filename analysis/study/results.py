"""What a study found: the steps' files, put together into `results.json`."""

import json
import statistics
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from saat.analysis.study.subjects import SUBJECTS
from saat.downstream import probe

PROBES = tuple(probe.PROBES)


def read_json(path: Path) -> Any:
    """None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def collect(out: Path) -> list[dict[str, Any]]:
    """An object for each (upstream, seed, split), in the tables' order.

    upstream; seed; split (`test` or `test-other`); the four accuracies (None where a probe was left out); `chance`, of
    each; pretrain_seconds, of processors, where it was pre-trained; inference_ratio_to_qk, of its attention's time.
    """
    ratios = {e["upstream"]: e["ratio_to_qk"] for e in read_json(out / "bench" / "inference.json") or []}
    rows = []
    for label, subject in SUBJECTS.items():
        for file in sorted((out / "probes").glob(f"{label}-*.json")):
            run = file.stem.removeprefix(f"{label}-")
            if run == "all" or run.isdecimal():
                seconds = pretrain_seconds(out / "pretrain" / f"{label}-{run}") if subject.pretrained else None
                timed = ratios.get(subject.upstream) if subject.kind != "features" else None
                rows += _rows(
                    label, run, read_json(file), {"pretrain_seconds": seconds, "inference_ratio_to_qk": timed}
                )
    return rows


def _rows(label: str, run: str, found: list[dict], costs: dict[str, Any]) -> list[dict[str, Any]]:
    rows: dict[tuple, dict[str, Any]] = {}
    for entry in found:
        # Of what is pre-trained, the pre-training's seed (its probes' is always 0); of the rest, the probes'.
        seed = entry["seed"] if run == "all" else int(run)
        row = rows.setdefault(
            (seed, entry["split"]),
            {
                **{"upstream": label, "seed": seed, "split": entry["split"]},
                **dict.fromkeys(PROBES),
                "chance": dict.fromkeys(PROBES),
                **costs,
            },
        )
        row[entry["probe"]] = entry["accuracy"]
        row["chance"][entry["probe"]] = entry["chance"]
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[0]))]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a pre-training's `metrics.jsonl`, but for a half-written last one."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def pretrain_seconds(folder: Path) -> float | None:
    """Processor seconds of a pre-training, reading of audio in other processes not counted; None where unknown."""
    spent = [line["processor_seconds"] for line in metrics(folder) if "processor_seconds" in line]
    return round(sum(spent), 1) if spent else None


def curves(out: Path) -> dict[str, dict[str, list]]:
    """Learning curves by upstream: `loss` [(step, processor seconds, loss)], `held_out`, and for each probe and split
    `speaker_utterance test` … [(step, processor seconds, accuracy)]."""
    found: dict[str, dict[str, list]] = {}
    for folder in sorted((out / "pretrain").glob("*-curve")):
        label = folder.name.removesuffix("-curve")
        lines: dict[str, list] = defaultdict(list)
        logged = metrics(folder)
        # Losses on held-out utterances, and checkpoints, may lie between two logs of the time.
        timed = [line for line in logged if "processor_seconds" in line]
        at = [0, *(line["step"] for line in timed)]
        spent = [0.0, *accumulate(line["processor_seconds"] for line in timed)]
        for line in logged:
            for name, key in (("loss", "loss"), ("held_out", "held_out_loss")):
                if line.get(key) is not None:
                    lines[name].append((line["step"], float(np.interp(line["step"], at, spent)), line[key]))
        for file in (out / "probes").glob(f"{label}-curve-*.json"):
            step = int(file.stem.rsplit("-", 1)[1])
            for entry in read_json(file):
                seconds = float(np.interp(step, at, spent))
                lines[f"{entry['probe']} {entry['split']}"].append((step, seconds, entry["accuracy"]))
        found[label] = {name: sorted(points) for name, points in lines.items()}
    return found


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """The deviation of a sample; None of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
