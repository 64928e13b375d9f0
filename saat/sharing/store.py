"""The store: a folder, perhaps on a shared file system, of published checkpoints, `<store>/<upstream>/<tag>`.

It is $SAAT_CHECKPOINTS, or `checkpoints` in the user's cache. `<store>/<upstream>/default` names the tag that
`-u <upstream>` takes; without that file it is the newest.
"""

import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saat.cache import cache_folder
from saat.errors import SaatError, did_you_mean
from saat.sharing import published
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY, variant

DEFAULT = "default"


@dataclass(frozen=True)
class Entry:
    """One published checkpoint of a store."""

    upstream: str
    tag: str
    folder: Path
    record: dict[str, Any]
    default: bool  # what `-u <upstream>` takes

    @property
    def name(self) -> str:
        """What `-u` takes for this one."""
        return f"{self.upstream}.{self.tag}"


def store_folder(path: str | Path | None = None) -> Path:
    """The store: `path`, $SAAT_CHECKPOINTS, or in the user's cache."""
    return Path(path or os.environ.get("SAAT_CHECKPOINTS") or cache_folder() / "checkpoints").expanduser().resolve()


def entry_folder(store: Path, upstream: str, tag: str) -> Path:
    """Where a checkpoint lies or will lie. Errors: SaatError when that is not inside the store."""
    variant(upstream)
    published.check_tag(tag)
    if tag == DEFAULT:
        raise SaatError(f"a tag cannot be called '{DEFAULT}': that file names the default tag; pass --default as well")
    folder = store / upstream / tag
    _inside(store, folder)
    return folder


def _inside(store: Path, folder: Path) -> None:
    """The store's files are in the store: what a link leads to was checked by nobody."""
    for path in (folder.parent, folder, *(folder / name for name in _FILES)):
        if not path.resolve().is_relative_to(store):
            raise SaatError(f"{path} is a link that leads out of the store {store}: remove it")


_FILES = (published.WEIGHTS_FILE, published.RECORD_FILE, published.CARD_FILE)


def tags(store: Path, upstream: str) -> list[str]:
    """The tags there are, sorted; nothing is read."""
    try:
        names = [path.name for path in (store / upstream).iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(name for name in names if published.TAG.fullmatch(name))


def entries(store: Path, upstream: str | None = None) -> list[Entry]:
    """What the store holds, the newest of each upstream first; damaged ones are named and left out."""
    found = []
    for name in [upstream] if upstream else REGISTRY:
        records = {}
        for tag in tags(store, name):
            try:
                records[tag] = _record(store, name, tag)
            except SaatError as error:
                print(f"passed over {name}.{tag}: {error}", file=sys.stderr)
        default = _default(store, name, records)
        newest_first = sorted(records, key=lambda tag: (records[tag]["published"], tag), reverse=True)
        found += [Entry(name, tag, store / name / tag, records[tag], tag == default) for tag in newest_first]
    return found


def _record(store: Path, upstream: str, tag: str) -> dict[str, Any]:
    folder = entry_folder(store, upstream, tag)
    record = published.read_record(folder)
    if (record["upstream"], record["tag"]) != (upstream, tag):
        raise SaatError(f"{folder} holds the checkpoint {record['upstream']}.{record['tag']}: was it moved?")
    return record


def _default(store: Path, upstream: str, records: dict[str, dict]) -> str | None:
    try:
        tag = (store / upstream / DEFAULT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        tag = ""
    if tag in records:
        return tag
    return max(records, key=lambda tag: (records[tag]["published"], tag), default=None)


def find(upstream: str, tag: str | None = None, store: str | Path | None = None) -> Path:
    """The folder of a published checkpoint.

    Args:
        upstream: its name.
        tag: which; by default the store's default for that name.
        store: by default `store_folder()`.

    Errors: SaatError when there is none; it says how to get one.
    """
    store = store_folder(store)
    if tag is not None:
        folder = entry_folder(store, upstream, tag)
        if not folder.is_dir():
            known = tags(store, upstream)
            hint = did_you_mean(tag, known) if known else "`saat pull` brings one, `saat publish` adds one"
            raise SaatError(f"{upstream}.{tag}: no such checkpoint in the store {store}: {hint}")
        return folder
    for entry in entries(store, upstream):
        if entry.default:
            return entry.folder
    raise SaatError(
        f"{upstream}: no checkpoint: pass -k FILE (path_or_url=FILE in Python), or put one into the store {store}, "
        f"which has none: `saat pull hf://OWNER/REPO`, or `saat publish FILE` after run_pretrain.py -u {upstream}"
    )


def source_folder(source: str, store: str | Path | None = None) -> Path:
    """A published checkpoint by name (`saat_ours`, `saat_ours.TAG`) or by its folder.

    Errors: SaatError when there is none.
    """
    name, _, tag = source.partition(".")
    if name in REGISTRY and not Path(source).exists():
        return find(name, tag or None, store)
    if not Path(source).expanduser().is_dir():
        raise SaatError(f"no published checkpoint {source}: give a name such as saat_ours.TAG, or its folder")
    return Path(source).expanduser()


def add(
    store: Path,
    record: dict[str, Any],
    states: dict[str, Any] | None = None,
    source: Path | None = None,
    force: bool = False,
    default: bool = False,
) -> Path:
    """Publish into the store, at the record's upstream and tag.

    Args:
        store: the folder, made where there is none.
        record: the facts.
        states: of a checkpoint; or else
        source: the folder of a published checkpoint to copy.
        force: exchange what is there.
        default: make it what `-u <upstream>` takes.

    Returns: the folder.

    Errors: SaatError when the place is taken, or the weights do not fit their config.
    """
    folder = entry_folder(store, record["upstream"], record["tag"])
    if source is not None:
        states = published.read(source)[0]
    checkpoint.check_model(states, str(source or folder))
    if source is not None:
        published.copy(source, folder, record, force)
    else:
        published.write(folder, states, record, force)
    if default:
        set_default(store, record["upstream"], record["tag"])
    return folder


def set_default(store: Path, upstream: str, tag: str) -> None:
    """Make a tag what `-u <upstream>` takes."""
    folder = store / upstream
    part = folder / f".{DEFAULT}.{uuid.uuid4().hex}"
    part.write_text(tag + "\n", encoding="utf-8")
    part.replace(folder / DEFAULT)
