"""The folder of an experiment: its checkpoints `states-N.ckpt`, its configs, a line for each start."""

import json
import platform
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import saat
from saat.errors import SaatError
from saat.pretrain.recipe import Recipe
from saat.sharing import published
from saat.upstream import checkpoint
from saat.upstream.config import ModelConfig

NEEDED = ("Transformer", "SpecHead", "Upstream_Config", "Optimizer", "Step", "Config", "Args")
PACKAGES = ("s3prl", "torch", "torchaudio", "numpy", "soundfile", "omegaconf", "pytorch-optimizer")


def checkpoint_path(expdir: Path, step: int) -> Path:
    return expdir / f"states-{step}.ckpt"


def checkpoints(expdir: Path) -> dict[int, Path]:
    """The checkpoints in a folder by step, oldest first; none when there is no such folder."""
    found = {}
    for path in expdir.glob("states-*.ckpt"):
        match = re.fullmatch(r"states-(\d+)\.ckpt", path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def load(path: Path) -> dict[str, Any]:
    """The states of a checkpoint to resume from. Errors: SaatError when it is missing, damaged or lacks something."""
    if not path.is_file():
        raise SaatError(f"no checkpoint at {path}: pass -e FILE or FOLDER, a states-N.ckpt of run_pretrain.py")
    states = checkpoint.load(path)
    missing = [key for key in NEEDED if key not in states]
    if missing:
        lack = ", ".join(missing)
        raise SaatError(f"{path} cannot be resumed from: it lacks {lack}; -i starts a new run with its weights")
    return states


def initial_weights(states: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """The encoder's weights that the run of a checkpoint started from, where these came from a file; None if drawn.

    Errors: SaatError when the file of `-i` is gone, or another one now.
    """
    if states.get("Step") == 0:  # not trained yet, as from `saat init-from`
        return states["Transformer"]
    start = (states.get("Args") or {}).get("init_ckpt")
    if not start:
        return None
    path = Path(start["file"])
    if not path.exists() or published.file_sha256(published.weights_file(path)) != start["sha256"]:
        raise SaatError(
            f"the run started from {path}, which is gone or another file now: put back the one with SHA-256 "
            f"{start['sha256']}"
        )
    return checkpoint.load(path)["Transformer"]


def newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of a folder and its states; damaged newer ones are named and passed over.

    Errors: SaatError when there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise SaatError(f"no checkpoint (states-N.ckpt) in {folder}")
    for path in reversed(found.values()):
        try:
            return path, load(path)
        except SaatError as error:
            print(f"passed over a damaged checkpoint: {error}", file=sys.stderr)
    raise SaatError(f"every checkpoint in {folder} is damaged: remove them to start anew")


def save(expdir: Path, step: int, states: dict[str, Any], max_keep: int) -> Path:
    """Writes `states-{step}.ckpt`, then removes the oldest beyond `max_keep`, never this one or the newest.

    Errors: SaatError when the disk is full; nothing is removed then.
    """
    path = checkpoint_path(expdir, step)
    checkpoint.save(path, states)
    for old in list(checkpoints(expdir).values())[:-max_keep]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def prepare(expdir: Path, recipe: Recipe, config: ModelConfig, step: int, start: dict[str, Any]) -> None:
    """Makes the folder; writes `config_runner.yaml`, `config_model.yaml`, and a line in `starts.jsonl`: what `start`
    has (command, device, processes, corpus), versions and machine.

    Errors: SaatError when the folder cannot be written.
    """
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": step,
        **start,
        "machine": platform.node(),
        "threads": torch.get_num_threads(),
        "versions": {
            "saat": saat.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
    }
    try:
        expdir.mkdir(parents=True, exist_ok=True)
        for left_over in expdir.glob(".states-*.part"):  # of a process that was killed while saving
            left_over.unlink(missing_ok=True)
        for name, values in (("config_runner.yaml", recipe.to_dict()), ("config_model.yaml", config.to_dict())):
            (expdir / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        with (expdir / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise SaatError(f"cannot write in {expdir}: {error}; choose another folder with -p") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
