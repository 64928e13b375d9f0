"""The corpus: every usable audio file of folders and lists with its length, remembered in the user's cache folder."""

import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from saat.cache import cache_folder
from saat.errors import SaatError
from saat.pretrain.lists import LISTS, read_list
from saat.upstream.audio import AudioError, audio_length, find_audio
from saat.upstream.config import SAMPLE_RATE

VERSION = 1  # of the cache files
NAMED = 5  # skipped files that a message names


@dataclass
class Corpus:
    """Usable utterances, in an order that depends on nothing but their paths."""

    paths: list[str]
    samples: Tensor  # (N,), at 16 kHz
    names: list[str]  # paths below their folder or in their list, the same wherever the corpus lies
    skipped: list[str] = field(default_factory=list)  # one line a file: which, and why

    @property
    def hours(self) -> float:
        return int(self.samples.sum()) / SAMPLE_RATE / 3600

    def part(self, indices: list[int]) -> "Corpus":
        """Some of its utterances."""
        return Corpus([self.paths[i] for i in indices], self.samples[indices], [self.names[i] for i in indices])

    def fingerprint(self) -> str:
        """Equal for two corpora of the same files with the same lengths."""
        digest = hashlib.sha256()
        for name, samples in zip(self.names, self.samples.tolist(), strict=True):
            digest.update(f"{name}\t{samples}\n".encode())
        return digest.hexdigest()


def load_corpus(
    sources: Iterable[str | Path],
    shortest: int,
    splits: str | Path | None = None,
    strict: bool = False,
    skipped_file: Path | None = None,
    root: str | Path | None = None,
) -> Corpus:
    """The utterances of some folders and lists.

    Args:
        sources: folders, looked through at any depth; `.csv` and `.txt` files, see `read_list`.
        shortest: samples at 16 kHz; a shorter utterance has no token and is skipped.
        splits: a list of utterance ids (file names without ending), or a folder with `train_split.txt`; only these.
        strict: an unusable file is an error instead of being skipped.
        skipped_file: where all skipped files are listed, when there are any.
        root: where the relative paths of lists start.

    Errors: SaatError for a missing folder or list, when nothing is usable, and with `strict`.
    """
    wanted = _read_split(splits) if splits else None
    paths, samples, names, skipped = [], [], [], []
    seen = set()
    real_folder = functools.cache(os.path.realpath)
    for source in (Path(source).expanduser().resolve() for source in sources):
        lines: dict[Path, int] = {}
        if source.suffix.lower() in LISTS and not source.is_dir():
            files, lines = read_list(source, root)
        else:
            files = {path: path.relative_to(source).as_posix() for path in find_audio(source)}
        chosen = {path: name for path, name in files.items() if wanted is None or path.stem in wanted}
        lengths, broken = _lengths(source, chosen, set(files.values()))
        for path, problem in broken.items():
            skipped.append(f"{problem} ({source}, line {lines[path]})" if path in lines else problem)
        for path, length in lengths.items():
            place = (real_folder(path.parent), path.name)
            if place in seen:
                continue  # one folder may lie within another, or be linked to from there
            seen.add(place)
            if length < shortest:
                skipped.append(f"{path}: {length} samples at 16 kHz, shorter than a token of {shortest}")
                continue
            paths.append(str(path))
            samples.append(length)
            names.append(files[path])
    corpus = Corpus(paths, torch.tensor(samples, dtype=torch.int64), names, skipped)
    _report(corpus, [str(source) for source in sources], splits, strict, skipped_file)
    return corpus


def _report(corpus: Corpus, folders: list[str], splits: object, strict: bool, skipped_file: Path | None) -> None:
    where = ", ".join(folders)
    if not corpus.skipped and not corpus.paths:
        raise SaatError(f"none of the utterances listed in {splits} lies below {where}")
    if not corpus.skipped:
        return
    shown = "".join(f"\n  {line}" for line in corpus.skipped[:NAMED])
    if len(corpus.skipped) > NAMED:
        shown += f"\n  … and {len(corpus.skipped) - NAMED} more"
    if skipped_file is not None:
        try:
            skipped_file.parent.mkdir(parents=True, exist_ok=True)
            skipped_file.write_text("".join(f"{line}\n" for line in corpus.skipped), encoding="utf-8")
            shown += f"\n  (all of them in {skipped_file})"
        except OSError as error:
            raise SaatError(f"cannot write {skipped_file}: {error}; choose another folder with -p") from error
    count = f"{len(corpus.skipped)} of {len(corpus.skipped) + len(corpus.paths)} audio files below {where}"
    if not corpus.paths:
        raise SaatError(f"no audio file can be used: {count} are broken or too short:{shown}")
    if strict:
        raise SaatError(f"{count} cannot be used (strict): repair or remove them:{shown}")
    print(f"skipped {count}:{shown}", file=sys.stderr)


def _read_split(path: str | Path) -> set[str]:
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "train_split.txt"
    if not path.is_file():
        raise SaatError(f"no such list of utterances: {path} (datarc.splits)")
    ids = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    if not ids:
        raise SaatError(f"{path} lists no utterance (datarc.splits)")
    return ids


def _lengths(source: Path, files: dict[Path, str], present: set[str]) -> tuple[dict[Path, int], dict[Path, str]]:
    """Samples of each readable file, from the cache where that is up to date; and what is wrong with each broken one.

    Args:
        source: the folder or list, which has a cache of its own.
        files: its paths, with their names below the folder or in the list.
        present: the names of all files there are; what the cache has of others is dropped.
    """
    cache_file = cache_folder() / "manifests" / f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
    cache = _read_cache(cache_file)
    lengths, broken, fresh = {}, {}, {}
    try:
        for path, name in tqdm(files.items(), desc=f"measuring {source.name}", unit="file", disable=len(files) < 200):
            try:
                stat = path.stat()
                state = [stat.st_size, stat.st_mtime_ns]
                known = cache.get(name)
                if known is None or known[:2] != state:
                    known = fresh[name] = [*state, audio_length(path)]
            except AudioError as error:
                broken[path] = str(error)
            except OSError as error:
                broken[path] = f"{path}: {error}"
            else:
                lengths[path] = known[2]
    finally:
        # Also when interrupted: what has been measured need not be measured again.
        if fresh:
            _write_cache(cache_file, {name: entry for name, entry in (cache | fresh).items() if name in present})
    return lengths, broken


def _read_cache(path: Path) -> dict[str, list[int]]:
    """Entries [bytes, time of change in ns, samples] by path; none when the file is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        files = data["files"] if data["version"] == VERSION else {}
        return {
            str(name): list(entry)
            for name, entry in files.items()
            if len(entry) == 3 and all(type(value) is int for value in entry)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a cache: it is made anew


def _write_cache(path: Path, files: dict[str, list[int]]) -> None:
    """Beside its place, then renamed: another process never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "files": files}, file)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        print(f"the lengths of the corpus cannot be remembered in {path}: {error}", file=sys.stderr)
