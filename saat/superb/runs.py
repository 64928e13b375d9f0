"""One training and one test of a task, by S3PRL's own script with S3PRL's config; each result is kept in its folder."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import saat
from saat.errors import SaatError
from saat.files import write_text
from saat.superb.tasks import RATES, Task


@dataclass(frozen=True)
class Settings:
    """What all runs share. `steps` shortens training (SUPERB's own number when None)."""

    s3prl: Path  # <checkout>/s3prl
    out: Path
    upstream: str
    ckpt: str | None
    rates: tuple[str, ...] = RATES
    steps: int | None = None
    device: str = "cuda"


def trained(
    settings: Settings, task: Task, given: dict[str, Any], rate: str, fold: dict[str, str], folder: Path
) -> float:
    """Best score on dev of one training; kept in `dev.json`."""
    kept = folder / "dev.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))["score"]
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((settings.s3prl / "downstream" / task.folder / task.config).read_text(encoding="utf-8"))
    values = {key: str(Path(given[name]).expanduser().resolve()) for name, key in task.needs.items()}
    values |= {**fold, **(given.get("config") or {}), "optimizer.lr": float(rate)}
    if settings.steps is not None:
        values["runner.total_steps"] = settings.steps
        for key in ("log_step", "eval_step", "save_step"):
            values[f"runner.{key}"] = min(config["runner"][key], settings.steps)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    upstream = ["-u", settings.upstream, *(["-k", settings.ckpt] if settings.ckpt else [])]
    arguments = [
        "-m",
        "train",
        *upstream,
        "-d",
        task.folder,
        "-c",
        str(folder / "config.yaml"),
        "-p",
        str(folder),
        "-a",
    ]
    _s3prl(settings, folder, "train.log", arguments)
    score = _best_score(checkpoint(task, folder))
    write_text(kept, json.dumps({"score": score}) + "\n")
    return score


def tested(settings: Settings, task: Task, folder: Path) -> float:
    kept = folder / "test.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))["score"]
    _s3prl(settings, folder, "test.log", ["-m", "evaluate", "-t", task.test, "-e", str(checkpoint(task, folder))])
    found = re.findall(
        rf"^{task.test} {task.metric}: ([\d.eE+-]+)", (folder / "test.log").read_text(errors="replace"), re.M
    )
    if not found:
        raise SaatError(f"{folder / 'test.log'} has no line '{task.test} {task.metric}: …'")
    write_text(kept, json.dumps({"score": float(found[-1])}) + "\n")
    return float(found[-1])


def checkpoint(task: Task, folder: Path) -> Path:
    """The weights that did best on dev; where none did better than an untrained model, the last ones.

    Errors: SaatError when nothing was saved.
    """
    from saat.pretrain import experiment  # torch, which the command line should not wait for

    best = folder / task.best
    last = list(experiment.checkpoints(folder).values())[-1:]
    if not best.is_file() and not last:
        raise SaatError(f"nothing was saved in {folder}: see its train.log")
    return best if best.is_file() else last[0]


def _best_score(path: Path) -> float:
    """S3PRL's experts keep their best score on dev among their weights."""
    import torch

    from saat.upstream.checkpoint import S3PRLS, allowing

    with allowing(S3PRLS):
        return float(torch.load(path, map_location="cpu", weights_only=True)["Downstream"]["best_score"])


def _s3prl(settings: Settings, folder: Path, log: str, arguments: list[str]) -> None:
    """One run of S3PRL's script, in its own folder, as its relative paths want."""
    script = str(settings.s3prl / "run_downstream.py")
    command = [sys.executable, "-m", "saat.cli", "run", script, "--device", settings.device, *arguments]
    checkout = str(Path(saat.__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), checkout]))
    with (folder / log).open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=settings.s3prl, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": search}
        )
    if done.returncode:
        lines = (folder / log).read_text(errors="replace").strip().splitlines()
        raise SaatError(f"{lines[-1][:200] if lines else 'no output'} (see {folder / log})")
