"""`saat report`: tables, figures and report from what the steps of a study have left so far."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saat.analysis.heads_figure import compare, initial_and_trained, patterns_figure
from saat.analysis.keys_figure import keys_figure
from saat.analysis.map_figures import categories_figure, embedding_figure
from saat.analysis.study import curve_tables, plots, tables
from saat.analysis.study.report import Section, write_report, write_results
from saat.analysis.study.results import collect, curves, metrics, pretrain_seconds, read_json
from saat.analysis.study.subjects import SUBJECTS
from saat.errors import SaatError
from saat.files import write_text
from saat.pretrain import experiment

PAPER_HOURS, PAPER_STEPS = 363.6, 500_000  # train-clean-360; SPEC section 3


def write(out: Path) -> tuple[Path, Path]:
    """`results.json`, `figures/`, `report.md`, `report.html` in the study's folder; returns the last two.

    Errors: SaatError where the folder holds no study, or nothing has been probed yet.
    """
    study = read_json(out / "study.json")
    if study is None:
        raise SaatError(f"{out} holds no study: give the --out of `saat study`")
    rows = collect(out)
    if not rows:
        raise SaatError(f"nothing has been probed yet in {out}: the study has to finish a step first")
    write_results(rows, out)
    sections = [_setting(out, study, rows), _accuracies(out, rows)]
    sections += [section for section in (_times(out), _curves(out), _attention(out, study), _losses(out)) if section]
    return write_report("Which attention an audio transformer needs", sections, out)


def _commands(out: Path, *patterns: str, curves: bool = False) -> list[str]:
    """The commands of the finished steps whose names are like that, with the seconds they took; paths shortened."""
    found = []
    for mark in sorted({path for pattern in patterns for path in (out / "done").glob(f"{pattern}.json")}):
        if ("-curve" in mark.stem) != curves:
            continue
        step = read_json(mark)
        command = re.sub(r"(?<![\w/])/[^\s\"',]+", lambda path: _short(Path(path[0]), out), step["command"])
        # A pre-training that was stopped and went on: all of it, not its last part.
        whole = pretrain_seconds(out / "pretrain" / mark.stem.removeprefix("pretrain-"))
        found.append(f"{command}  # " + (f"{step['seconds']:.0f} s" if whole is None else f"{whole:.0f} processor s"))
    return found


def _short(path: Path, out: Path) -> str:
    """Below the study's folder from there on; else the last two parts."""
    return str(path.relative_to(out.parent)) if path.is_relative_to(out) else "/".join(path.parts[-2:])


def _setting(out: Path, study: dict[str, Any], rows: list[dict[str, Any]]) -> Section:
    corpora = study["corpora"]
    marks = [read_json(path) for path in (out / "done").glob("*.json")]
    machines = sorted({f"{m['machine']}, torch {m['versions']['torch']}, saat {m['versions']['saat']}" for m in marks})
    starts = [json.loads((folder / "starts.jsonl").read_text().splitlines()[0]) for folder in _pretrainings(out)]
    text = []
    if starts:
        corpus = starts[0]["corpus"]
        steps = sorted({line["step"] for folder in _pretrainings(out) for line in metrics(folder)[-1:]})
        text.append(
            f"Pre-trained by masked acoustic modelling on {corpus['utterances']} utterances, {corpus['hours']:.2f} h, "
            f"of {_names(corpora['pretrain'])} (the paper: {PAPER_HOURS:.0f} h), {' or '.join(map(str, steps))} steps "
            f"(the paper: {PAPER_STEPS}). No utterance that a probe is tested on is among "
            "them. The recipe is recipe.yaml in the study's folder."
        )
    other = f", and phonemes tested on {_names(corpora['test_other'])} too" if corpora["test_other"] else ""
    text.append(
        f"Speaker probes on {_names(corpora['speaker'])}, phoneme probes on {_names(corpora['phoneme'])}"
        + (f"{other}." if corpora["phones"] else ": none, for want of phone labels (--phones).")
        + " Frozen features of the last layer; the learning rate of a probe is chosen on the dev split, and so is the "
        "step whose weights are tested."
    )
    pretrained = {(r["upstream"], r["seed"]) for r in rows if SUBJECTS[r["upstream"]].pretrained}
    text.append(
        f"{len(pretrained)} pre-trained models. Made on: {'; '.join(machines)}. The commands are those of the steps, "
        "their paths shortened."
    )
    return Section("Setting", "\n\n".join(text))


def _names(folders: list[str]) -> str:
    return ", ".join(str(Path(*Path(folder).parts[-2:])) for folder in folders)


def _pretrainings(out: Path) -> list[Path]:
    """Folders of those that are finished, learning curves excluded."""
    found = sorted(mark.stem.removeprefix("pretrain-") for mark in (out / "done").glob("pretrain-*.json"))
    folders = [out / "pretrain" / name for name in found if not name.endswith("-curve")]
    return [folder for folder in folders if (folder / "starts.jsonl").is_file()]  # others were removed since


def _accuracies(out: Path, rows: list[dict[str, Any]]) -> Section:
    found = [tables.accuracies(rows, split) for split in ("test", "test-other")]
    commands = _commands(out, "pretrain-*", "start-*", "probe-*")
    return Section("Accuracy", tables=[table for table in found if table], commands=commands)


def _times(out: Path) -> Section | None:
    inference, training = (read_json(out / "bench" / f"{mode}.json") for mode in ("inference", "training"))
    if not inference:
        return None
    figure = plots.accuracy_against_time(collect(out), out / "figures" / "figure5.png")
    shown = [(figure, "Figure 5: accuracy against time, a point a variant.")] if figure else []
    return Section("Time", "", [tables.times(inference, training or [])], shown, _commands(out, "bench-*"))


def _curves(out: Path) -> Section | None:
    found = curves(out)
    figure = plots.learning_curves(found, out / "figures" / "curves.png")
    if figure is None:
        return None
    text = "Longer pre-trainings of their own, each with the recipe's schedule stretched to its length."
    caption = "Loss and accuracies on the test split against steps, and against processor time."
    filled = [table for table in (curve_tables.reached(found), curve_tables.crossings(found)) if table.rows]
    return Section("Learning curves", text, filled, [(figure, caption)], _commands(out, "*", curves=True))


def _losses(out: Path) -> Section | None:
    """The loss of every pre-training: what each model made of the task itself."""
    runs = []
    for folder in _pretrainings(out):
        lines = metrics(folder)
        held_out = [line["held_out_loss"] for line in lines if line.get("held_out_loss") is not None]
        losses = [line["loss"] for line in lines if line.get("loss") is not None]
        if losses:
            last = f"{held_out[-1]:.3f}" if held_out else "-"
            spent = sum(line.get("processor_seconds", 0.0) for line in lines)
            runs.append([folder.name, f"{losses[0]:.3f}", f"{losses[-1]:.3f}", last, f"{spent:.0f}"])
    if not runs:
        return None
    note = "Of a start from another model's maps: without the pre-training of that model."
    columns = ["pre-training", "loss at first", "at last", "held out, at last", "processor seconds"]
    losses = tables.Table("Loss (L1 on masked tokens)", columns, runs, note)
    return Section("Pre-training", "", [losses], commands=_commands(out, "pretrain-*"))


def _attention(out: Path, study: dict[str, Any]) -> Section:
    """Figures 1, 2, 4 and 6; drawn anew only where a checkpoint is newer than the picture, which outlives it."""
    figures, corpus = out / "figures", study["corpora"]["pretrain"]
    qk = _checkpoint(out, "saat_qk")
    plans = [_Drawing("figure1.png", "Figure 1: the keys that each algorithm lets a query see.", keys_figure)]
    found, made, left_out = [], [], []
    for label, name in (("saat_ours", "figure2"), ("saat_ours_from_qk", "figure2-from-qk")):
        ckpt = _checkpoint(out, label)
        caption = f"Figure 2: the weights of {label} at initialisation and after pre-training."
        plans.append(_Drawing(f"{name}.png", caption, ckpt and partial(patterns_figure, ckpt), ckpt))
        try:
            numbers = _made(figures / f"{name}.json", ckpt, ckpt and partial(_write_kept, ckpt))
            found += [_kept_patterns(label, read_json(numbers))] if numbers else []
        except SaatError as error:  # the file that it started from is gone
            left_out.append(f"{label} before and after pre-training: left out: {error}")
    caption = "Figure 4: attention maps of saat_qk by category."
    plans.append(_Drawing("figure4.png", caption, qk and partial(categories_figure, qk, corpus), qk))
    caption = "Figure 6: heads of saat_qk, a point a head, layer and utterance; PCA, then t-SNE."
    plans.append(_Drawing("figure6.png", caption, qk and partial(embedding_figure, qk, corpus), qk))
    for plan in plans:
        try:
            path = _made(figures / plan.name, plan.source, plan.draw)
            made += [(path, plan.caption)] if path else []
        except SaatError as error:  # such as a package that is not installed
            left_out.append(f"{plan.caption} Left out: {error}")
    return Section("Attention", "\n\n".join(left_out), found, made, [f"saat report {shlex.quote(out.name)}"])


@dataclass(frozen=True)
class _Drawing:
    name: str  # of the file
    caption: str
    draw: Callable[[Path], object] | None  # None where its checkpoint is gone, or not there yet
    source: Path | None = None  # the checkpoint


def _made(path: Path, source: Path | None, draw: Callable[[Path], object] | None) -> Path | None:
    """None where there is nothing, and nothing to make it from."""
    if draw and (not path.is_file() or (source is not None and source.stat().st_mtime > path.stat().st_mtime)):
        draw(path)
    return path if path.is_file() else None


def _write_kept(ckpt: Path, path: Path) -> None:
    write_text(path, json.dumps(compare(*initial_and_trained(ckpt))) + "\n")


def _checkpoint(out: Path, label: str) -> Path | None:
    """The last of the first seed's finished pre-training, where it is still there."""
    if out / "pretrain" / f"{label}-0" not in _pretrainings(out):
        return None
    return (list(experiment.checkpoints(out / "pretrain" / f"{label}-0").values()) or [None])[-1]


def _kept_patterns(label: str, numbers: dict[str, list[float]]) -> tables.Table:
    """How much of each head's start is left."""
    rows = [
        [str(head + 1), f"{r:.4f}", f"{kl:.2g}", f"{reverse:.2g}", f"{100 * moved:.1f}"]
        for head, (r, kl, reverse, moved) in enumerate(
            zip(*(numbers[key] for key in ("correlation", "kl", "kl_reverse", "moved")), strict=True)
        )
    ]
    columns = ["head", "correlation", "KL(before || after)", "KL(after || before)", "weight moved, %"]
    return tables.Table(f"Heads of {label} before and after pre-training", columns, rows, "KL in nats a row.")
