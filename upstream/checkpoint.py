"""Checkpoints: plain tensors and containers, written atomically, read without executing anything (DESIGN).

`states-N.ckpt` is what pre-training writes; `model.safetensors` holds the same weights and the model's config, for
sharing; a folder with one of these and its `config.json` is a published checkpoint (saat/sharing).
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saat.errors import SaatError
from saat.upstream.config import ModelConfig, model_config

REQUIRED = ("Transformer", "Upstream_Config")
WEIGHTS = ("Transformer", "SpecHead")  # what of a checkpoint is weights
METADATA = "saat"  # our key in a safetensors file's metadata


class Inert:
    """What an object of a class that is not wanted becomes: nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What S3PRL's runners put into their checkpoints beside tensors: the command line, a plain container; and in the
# optimizer's state its schedule, under the name their script or an installed S3PRL gives it.
S3PRLS = [
    argparse.Namespace,
    (Inert, "optimizers.WarmupLinearSchedule"),
    (Inert, "s3prl.optimizers.WarmupLinearSchedule"),
]


@contextlib.contextmanager
def allowing(names: list) -> Iterator[None]:
    """`torch.serialization.safe_globals`, which on leaving takes away what others had allowed before, without that."""
    known = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([name for name in names if name not in known]):
        yield


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
    """Read a checkpoint onto the CPU, executing nothing (`weights_only=True`, or safetensors).

    Args:
        path: a `states-N.ckpt`, a `model.safetensors`, or the folder of a published checkpoint.

    Returns: its states, at least `Transformer` (weights by name) and `Upstream_Config`.

    Errors: SaatError for a missing, truncated or foreign file, saying which.
    """
    path = Path(path)
    if path.is_dir():
        from saat.sharing.published import read

        return read(path)[0]
    if not path.is_file():
        raise SaatError(f"no checkpoint at {path}: pass -k FILE, a states-N.ckpt written by run_pretrain.py")
    states = load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    missing = [key for key in REQUIRED if not isinstance(states, dict) or key not in states]
    if missing:
        raise SaatError(f"{path} is not a checkpoint of saat: it lacks {', '.join(missing)}")
    for key in REQUIRED:
        if not isinstance(states[key], dict):
            raise SaatError(f"{path} is not a checkpoint of saat: its {key} is a {type(states[key]).__name__}")
    return states


def _load_torch(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise SaatError(f"{path} is not a checkpoint, or a truncated one: take another states-N.ckpt")
    try:
        with allowing(S3PRLS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise SaatError(f"cannot read {path} as a checkpoint of plain tensors: {unpickling_problem(error)}") from error


def unpickling_problem(error: Exception) -> str:
    """One line about a failed `torch.load`, without torch's advice to trust the file."""
    if refused := re.search(r"(?:GLOBAL|global|function:?) ([\w.]+\.[\w.]+)", str(error)):
        return f"a {refused[1]} is pickled in it, and what is pickled is not run"
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_safetensors(path: Path, states: dict[str, Any]) -> None:
    """Write the weights and the model's config of `states` to a new safetensors file.

    Its tensors are named `Transformer.…` and `SpecHead.…`; the metadata has the config and the step as JSON. Shared
    layers are one set of weights here as everywhere.
    """
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part in WEIGHTS
        for name, value in states.get(part, {}).items()
    }
    about = {"Upstream_Config": states["Upstream_Config"], "Step": states.get("Step", 0)}
    try:
        save_file(tensors, path, metadata={METADATA: json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise SaatError(f"cannot write {path}: {error}") from error


def load_safetensors(path: Path) -> dict[str, Any]:
    """The states in a file of `save_safetensors`. Errors: SaatError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            states = json.loads((file.metadata() or {}).get(METADATA, "null"))
            if not isinstance(states, dict):
                raise SaatError(f"{path} holds no model config of saat: only files of `saat publish` can be read")
            states = {key: states[key] for key in ("Upstream_Config", "Step") if key in states}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part, _, rest = name.partition(".")
                if part not in WEIGHTS:
                    raise SaatError(f"{path}: unknown tensor '{name[:100]}': expected Transformer.… or SpecHead.…")
                states.setdefault(part, {})[rest] = file.get_tensor(name)
    except SaatError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise SaatError(f"{path} is not a safetensors file, or a truncated one: {str(error)[:200]}") from error
    return states


def check_shapes(config: ModelConfig, states: dict[str, torch.Tensor], where: str) -> None:
    """Compare the weights of an encoder with what its config describes, before any memory is taken for the model.

    Errors: SaatError that names the first difference.
    """
    from saat.upstream.encoder import AudioAlbert

    try:
        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in AudioAlbert(config).state_dict().items()}
    except SaatError:
        raise
    except (RuntimeError, OverflowError, ValueError) as error:
        raise SaatError(f"{where}: the weights do not fit the model its config describes, which cannot be") from error
    found = {name: tuple(getattr(value, "shape", ())) for name, value in states.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise SaatError(
                f"{where}: the weights do not fit the model its config describes: {name} has shape "
                f"{found.get(name, 'none, it is missing')}, the config asks for {expected.get(name, 'no such weight')}"
            )


def check_model(states: dict[str, Any], where: str) -> ModelConfig:
    """The config in a checkpoint's states. Errors: SaatError when it is invalid, or the weights do not fit it."""
    saved = states["Upstream_Config"]
    config = model_config(saved.get("upstream"), (saved, f"the config in {where}"))
    check_shapes(config, states["Transformer"], where)
    return config


def load_weights(module: torch.nn.Module, states: dict[str, Any], where: str) -> None:
    """`load_state_dict`, strict, with an error that names the file and the first difference."""
    try:
        module.load_state_dict(states)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise SaatError(f"{where}: the weights do not fit the model its config describes: {reason}") from error
