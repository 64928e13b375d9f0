"""A published checkpoint: a folder with `model.safetensors`, `config.json` (the record) and `README.md` (the card).

The record holds the weights' SHA-256 and size, so that a damaged, exchanged or half-copied file is found out.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.upstream import checkpoint
from saat.upstream.attention import variant

FORMAT = 1
WEIGHTS_FILE, RECORD_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
LARGEST_RECORD = 4 * 2**20  # bytes
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
PATIENCE = (0.0, 0.05, 0.2)  # seconds to wait before each look at a folder that `--force` may be exchanging


def check_tag(tag: str) -> str:
    """Errors: SaatError for a tag that cannot be the name of a folder everywhere."""
    if not isinstance(tag, str) or not TAG.fullmatch(tag) or tag.endswith("."):
        raise SaatError(f"'{str(tag)[:100]}' cannot be a tag: use letters, digits, '.', '_' and '-', such as mini-en")
    return tag


def weights_file(path: Path) -> Path:
    """The file with the weights: that of a published checkpoint's folder, or `path` itself."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a published checkpoint, checked as far as it goes without the weights.

    Errors: SaatError where there is none, or it is not one.
    """
    path = folder / RECORD_FILE
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_RECORD + 1)
    except OSError as error:
        raise SaatError(f"no published checkpoint in {folder}: cannot read {RECORD_FILE}: {error.strerror}") from error
    return parse_record(data, str(path))


def parse_record(data: bytes, where: str) -> dict[str, Any]:
    """`config.json` as a checked record. Errors: SaatError when it is something else."""
    try:
        if len(data) > LARGEST_RECORD:
            raise ValueError(f"larger than {LARGEST_RECORD} bytes")
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SaatError(f"{where} is not the record of a published checkpoint: {str(error)[:200]}") from error
    shape = {"format": int, "upstream": str, "tag": str, "published": str, "model": dict, "weights": dict,
             "pretraining": dict, "probes": list}  # fmt: skip
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in shape.items()):
        raise SaatError(f"{where} is not the record of a published checkpoint: expected the keys {', '.join(shape)}")
    if record["format"] > FORMAT:
        raise SaatError(f"{where} has format {record['format']}, newer than {FORMAT}: update s3prl-saat")
    if variant(record["upstream"]).attention is None:
        raise SaatError(f"{where}: {record['upstream']} has no weights")
    check_tag(record["tag"])
    if not re.fullmatch(r"[0-9TZ:.+-]{10,40}", record["published"]):
        raise SaatError(f"{where}: 'published' is not a time")
    weights = record["weights"]
    if not re.fullmatch(r"[0-9a-f]{64}", str(weights.get("sha256"))) or type(weights.get("bytes")) is not int:
        raise SaatError(f"{where}: weights must have a sha256 of 64 hex digits and a size in bytes")
    return record


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states and the record of a published checkpoint, its hash checked.

    Errors: SaatError when something is missing, damaged, or does not belong together.
    """
    folder = Path(folder)
    problem = SaatError(f"no published checkpoint in {folder}")
    for wait in PATIENCE:
        time.sleep(wait)
        try:
            record = read_record(folder)
            states = _states(folder, record)
            if read_record(folder) == record:  # else somebody has just published another one here
                return states, record
        except SaatError as error:
            problem = error
    raise problem


def _states(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    path, weights = folder / WEIGHTS_FILE, record["weights"]
    if not path.is_file():
        raise SaatError(f"no {WEIGHTS_FILE} in {folder}: the published checkpoint is not whole")
    if path.stat().st_size != weights["bytes"]:
        raise SaatError(f"{path} has {path.stat().st_size} bytes, its record says {weights['bytes']}: fetch it again")
    if file_sha256(path) != weights["sha256"]:
        raise SaatError(f"{path} is not the file that was published: its SHA-256 differs from the record's")
    states = checkpoint.load(path)
    if states["Upstream_Config"] != record["model"]:
        raise SaatError(f"{folder}: {RECORD_FILE} and {WEIGHTS_FILE} describe different models")
    return states


def write(folder: Path, states: dict[str, Any], record: dict[str, Any], force: bool = False) -> None:
    """Publish a checkpoint's states at `folder`, all at once.

    Args:
        folder: `<store>/<upstream>/<tag>`.
        states: a checkpoint's.
        record: the facts; its `weights` are filled in here.
        force: exchange what is there already.

    Errors: SaatError when something is there, or the disk is full.
    """

    def fill(part: Path) -> None:
        checkpoint.save_safetensors(part / WEIGHTS_FILE, states)
        record["weights"] = {
            "file": WEIGHTS_FILE,
            "sha256": file_sha256(part / WEIGHTS_FILE),
            "bytes": (part / WEIGHTS_FILE).stat().st_size,
            "parameters": sum(value.numel() for value in states["Transformer"].values()),
        }
        _describe(part, record)

    _publish(folder, fill, force)


def copy(source: Path, folder: Path, record: dict[str, Any], force: bool = False) -> None:
    """Publish at `folder` the weights of the published checkpoint in `source`, byte for byte, hash checked.

    Its card is kept while `record` is the source's own; otherwise it is written anew. Errors: as `write` and `read`.
    """

    def fill(part: Path) -> None:
        if not (source / WEIGHTS_FILE).is_file():
            raise SaatError(f"no {WEIGHTS_FILE} in {source}: the published checkpoint is not whole")
        shutil.copyfile(source / WEIGHTS_FILE, part / WEIGHTS_FILE)
        _states(part, record)
        if read_record(source) == record and (source / CARD_FILE).is_file():
            shutil.copyfile(source / RECORD_FILE, part / RECORD_FILE)
            shutil.copyfile(source / CARD_FILE, part / CARD_FILE)
        else:
            _describe(part, record)

    _publish(folder, fill, force)


def _describe(part: Path, record: dict[str, Any]) -> None:
    from saat.sharing.card import as_markdown

    (part / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    try:
        card = as_markdown(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SaatError(f"{record['upstream']}.{record['tag']}: the record's facts make no card: {error!r}") from error
    (part / CARD_FILE).write_text(card, encoding="utf-8")


def _publish(folder: Path, fill: Callable[[Path], None], force: bool) -> None:
    """`fill` writes into a hidden folder beside `folder`, which is then renamed: a reader finds a whole checkpoint or
    none, and of two publishers the second is refused."""
    if folder.exists() and not force:
        raise _taken(folder)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        fill(part)
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _move_in(part, folder, force)
    except OSError as error:
        raise SaatError(f"cannot publish in {folder.parent}: {error}; nothing was changed there") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move_in(part: Path, folder: Path, force: bool) -> None:
    """Renames; what `force` exchanges is moved aside, and comes back if the new one cannot take its place."""
    aside: list[Path] = []
    try:
        for _ in range(100):
            try:
                part.rename(folder)  # fails where a folder holds files: that is what keeps publishers apart
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if not force:
                    raise _taken(folder) from None
            old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.replaced")
            with contextlib.suppress(FileNotFoundError):  # another publisher has moved it
                folder.rename(old)
                aside.append(old)
        raise SaatError(f"cannot publish at {folder}: others are publishing there all the time")
    except BaseException:
        if aside and not folder.exists():
            aside.pop().rename(folder)
        raise
    finally:
        for old in aside:
            shutil.rmtree(old, ignore_errors=True)


def _taken(folder: Path) -> SaatError:
    return SaatError(f"{folder} is published already: choose another --tag, or pass --force to exchange it")
