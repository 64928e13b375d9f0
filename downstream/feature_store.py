"""Features on disk: extracted once for a checkpoint and a corpus, then memory-mapped by whoever trains on them.

A folder holds `layer-N.bin` for each hidden state kept, all tokens one after the other, and `index.json`, which says
where each utterance lies. The folder's name is a hash of all that decides what is in it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from saat import __version__
from saat.downstream.corpus import Utterance, num_tokens
from saat.downstream.extraction import Extractor, tell_bad
from saat.errors import SaatError

FORMAT = 1  # of the folder
DTYPES = {"float16": np.float16, "float32": np.float32}


class LayerFeatures(Mapping):
    """Utterance id to its (T, D) features of one hidden state, as they lie on disk (float16 or float32)."""

    def __init__(self, path: Path, index: dict[str, Any]):
        self.rows = index["utterances"]
        shape = (index["tokens"], index["dim"])
        # "c": pages are private, and torch is not told of a read-only array.
        self.tokens = torch.from_numpy(np.memmap(path, DTYPES[index["dtype"]], mode="c", shape=shape))

    def __getitem__(self, utterance: str) -> Tensor:
        offset, tokens, _ = self.rows[utterance]
        return self.tokens[offset : offset + tokens]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class StoredFeatures:
    """An extracted folder.

    Attributes:
        layers: for each hidden state asked for, in that order, utterance id to (T, D).
        samples: utterance id to the length of its audio.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.layers = [LayerFeatures(folder / f"layer-{n}.bin", index) for n in range(index["layers"])]
        self.samples = {utterance: row[2] for utterance, row in index["utterances"].items()}


def stored_features(
    root: Path,
    model: dict[str, Any],
    extractor: Extractor,
    utterances: list[Utterance],
    dtype: str = "float32",
    progress: bool = True,
) -> StoredFeatures:
    """The features of the utterances, from `root` where they are there, else extracted into it.

    Args:
        root: the cache folder.
        model: what, besides the extractor's layers, decides what the features are: the upstream and its weights.
        extractor: of the features.
        utterances: of one corpus.
        dtype: float16 or float32, on disk.

    Two processes at once: one extracts, the other waits. An extraction that was interrupted begins anew.

    Errors: SaatError where the disk has too little room, before anything is computed, or the folder cannot be used.
    """
    place = _place(root, model, extractor, utterances, dtype)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            index = _read_index(place)
            if index is not None:
                tell_bad(index["bad"])
            else:
                part = place.with_name(f".{place.name}.part")
                for left_over in (part, place):  # of a process that was killed; a folder that lacks something
                    if left_over.exists():
                        shutil.rmtree(left_over)
                check_room(root, model, extractor, [utterances], dtype)
                try:
                    part.mkdir()
                    index = _write(part, extractor, utterances, dtype, progress)
                    part.rename(place)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise _unusable(root, error) from error
    return StoredFeatures(place, index)


def _unusable(root: Path, error: OSError) -> SaatError:
    return SaatError(f"--features: cannot keep features in {root}: {error}; name another folder")


def _place(root: Path, model: dict[str, Any], extractor: Extractor, utterances: list[Utterance], dtype: str) -> Path:
    # The size alone is the same for whatever a WAV file of one length holds.
    files = [(utterance, utterance.path.stat()) for utterance in utterances]
    corpus = sorted((u.id, u.samples, file.st_size, file.st_mtime_ns) for u, file in files)
    about = {
        "format": FORMAT,
        "version": __version__,
        "model": model,
        "layers": extractor.layers,
        "stride": extractor.stride,
        "dtype": dtype,
        "corpus": corpus,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    return root / f"{model['upstream']}-{key}"


def _read_index(place: Path) -> dict[str, Any] | None:
    """None where there is no whole folder."""
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        size = index["tokens"] * index["dim"] * np.dtype(DTYPES[index["dtype"]]).itemsize
        whole = all((place / f"layer-{n}.bin").stat().st_size == size for n in range(index["layers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _layers(extractor: Extractor) -> int:
    return 1 if extractor.layers is None else len(extractor.layers)


def check_room(
    root: Path, model: dict[str, Any], extractor: Extractor, corpora: Iterable[list[Utterance]], dtype: str
) -> None:
    """Whether the features of these corpora that are not in `root` yet, together, fit on its disk.

    Errors: SaatError where they do not.
    """
    places = {_place(root, model, extractor, utterances, dtype): utterances for utterances in corpora}
    missing = [utterances for place, utterances in places.items() if _read_index(place) is None]
    tokens = sum(num_tokens(u.samples, extractor.stride) for utterances in missing for u in utterances)
    needed = tokens * extractor.dim * _layers(extractor) * np.dtype(DTYPES[dtype]).itemsize
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise _unusable(root, error) from error
    if missing and needed >= free:
        halve = ", --dtype float16 needs half" if dtype == "float32" else ""
        raise SaatError(
            f"--features: the features of {tokens} tokens need {needed / 1e9:.2f} GB, and {root} has {free / 1e9:.2f} "
            f"GB free{halve}: make room or name a folder on another disk (--features DIR)"
        )


def _write(folder: Path, extractor: Extractor, utterances: list[Utterance], dtype: str, progress: bool) -> dict:
    rows: dict[str, tuple[int, int, int]] = {}
    offset = 0
    files = [(folder / f"layer-{n}.bin").open("wb") for n in range(_layers(extractor))]
    try:
        for utterance in extractor(utterances, progress=progress):
            for file, states in zip(files, utterance.states, strict=True):
                with np.errstate(over="ignore"):  # told below
                    values = states.numpy().astype(DTYPES[dtype])
                if dtype == "float16" and not np.isfinite(values).all():
                    raise SaatError(f"{utterance.id}: its features do not fit float16: use --dtype float32")
                file.write(values.tobytes())
            tokens = len(utterance.states[0])
            rows[utterance.id] = (offset, tokens, utterance.samples)
            offset += tokens
    finally:
        for file in files:
            file.close()
    index = {"dtype": dtype, "dim": extractor.dim, "layers": len(files), "tokens": offset}
    index |= {"bad": extractor.bad, "utterances": rows}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return index
