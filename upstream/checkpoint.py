"""Checkpoints: plain tensors and containers, written atomically, read without executing anything (DESIGN)."""

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from saat.errors import SaatError

REQUIRED = ("Transformer", "Upstream_Config")


def save(path: str | Path, states: dict[str, Any]) -> None:
    """Write `states` to a temporary file beside `path`, then rename it: `path` is whole or untouched.

    Errors: SaatError when the disk is full or the folder cannot be written; what was at `path` survives.
    """
    path = Path(path)
    handle, temporary = None, None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            torch.save(states, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise SaatError(
            f"cannot save {path}: {error}; is the disk full? Earlier checkpoints are untouched: free some room and "
            "resume with -a"
        ) from error
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, executing nothing (`weights_only=True`).

    Errors: SaatError for a missing, truncated or foreign file, saying which.
    """
    path = Path(path)
    if not path.is_file():
        raise SaatError(f"no checkpoint at {path}: pass -k FILE, a states-N.ckpt written by run_pretrain.py")
    if not zipfile.is_zipfile(path):
        raise SaatError(f"{path} is not a checkpoint, or a truncated one: take another states-N.ckpt")
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SaatError(f"cannot read {path} as a checkpoint of plain tensors: {first}") from error
    missing = [key for key in REQUIRED if not isinstance(states, dict) or key not in states]
    if missing:
        raise SaatError(f"{path} is not a checkpoint of saat: it lacks {', '.join(missing)}")
    return states


def load_weights(module: torch.nn.Module, states: dict[str, Any], where: str) -> None:
    """`load_state_dict`, strict, with an error that names the file and the first difference."""
    try:
        module.load_state_dict(states)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise SaatError(f"{where}: the weights do not fit the model its config describes: {reason}") from error
