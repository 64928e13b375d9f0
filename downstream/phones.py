"""Phone labels by time: from a text file with a label each 10 ms, or from Praat TextGrids (SPEC section 4)."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from saat.downstream.corpus import num_tokens
from saat.errors import SaatError
from saat.upstream.config import SAMPLE_RATE

SILENCE = "SIL"
SILENT = {"", "sil", "sp", "spn", "<eps>"}  # what aligners write where no phone is
OVERHANG = 0.05  # seconds by which audio and alignment may differ
STRESSED = re.compile(r"[A-Z]{2}[0-2]")  # ARPAbet vowels as the Montreal Forced Aligner writes them


def token_centres(tokens: int, stride: float) -> np.ndarray:
    """(tokens,) float64 seconds: the centre of each token.

    A token is stride / 160 frames, and frame t is centred on sample 160 t (SPEC section 1). So stacked token i, of
    stride 480, is centred on sample 480 i + 160.
    """
    return (2 * stride * np.arange(tokens) + (stride - 160)) / (2 * SAMPLE_RATE)


@dataclass(frozen=True)
class Alignment:
    """One utterance's phones, in time, without gaps."""

    starts: np.ndarray  # (K,) float64 seconds, the first is 0
    labels: np.ndarray  # (K,) int64
    end: float  # seconds

    def at(self, times: np.ndarray) -> np.ndarray:
        """(T,) int64: the label at each time in seconds; beyond the end, the last one."""
        return self.labels[np.searchsorted(self.starts[1:], times, side="right")]

    def misfit(self, samples: int, stride: float) -> str | None:
        """Why the alignment cannot be that of an utterance of so many samples; None where it can."""
        seconds = samples / SAMPLE_RATE
        last = token_centres(num_tokens(samples, stride), stride)[-1]
        if last - self.end < OVERHANG and self.end - seconds < OVERHANG:
            return None
        return f"{self.end:.2f} s of labels for {seconds:.2f} s of audio"


@dataclass(frozen=True)
class Phones:
    """All alignments of a corpus."""

    names: list[str]  # label to name
    alignments: dict[str, Alignment]  # by utterance id
    broken: list[str]  # what could not be read, and why


def read_phones(path: str | Path | None) -> Phones:
    """Alignments from a text file or a folder of TextGrids.

    Errors: SaatError for nothing there, a label that is no number or out of range, naming utterance and position.
    """
    if path is None:
        raise SaatError(
            "downstream_expert.datarc.phones is not set: a phoneme probe needs a text file of labels or a folder of "
            "TextGrids: -o config.downstream_expert.datarc.phones=PATH"
        )
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_textgrids(path)
    if path.is_file():
        return _read_text(path)
    raise SaatError(f"datarc.phones: no such file or folder: {path}")


def _read_text(path: Path) -> Phones:
    """`utt l0 l1 …`: label j covers [0.01 j, 0.01 (j + 1)) seconds."""
    table = path.with_name("phones.txt")
    names = _read_names(table) if table.is_file() and table != path else None
    alignments: dict[str, Alignment] = {}
    highest = -1
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            utterance, *fields = line.split() or [""]
            if not utterance:
                continue
            if utterance in alignments:
                raise SaatError(f"{path}, line {number}: {utterance} is there twice")
            if not fields:
                raise SaatError(f"{path}, line {number}: {utterance} has no labels")
            labels = _numbers(fields, len(names) if names else None, f"{path}, {utterance}")
            highest = max(highest, int(labels.max()))
            changes = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1])
            # A division, so that label j starts at the very float a token's centre is compared as.
            alignments[utterance] = Alignment(changes / 100, labels[changes], len(labels) / 100)
    if not alignments:
        raise SaatError(f"datarc.phones: {path} holds no labels; expected lines `utterance l0 l1 …`")
    return Phones(names or [str(label) for label in range(highest + 1)], alignments, [])


def _numbers(fields: list[str], classes: int | None, where: str) -> np.ndarray:
    """(K,) int64 labels in [0, classes)."""
    try:
        labels = np.fromiter(map(int, fields), np.int64, len(fields))
        wrong = np.flatnonzero((labels < 0) | (labels >= classes if classes else False))
        first = int(wrong[0]) if len(wrong) else None
    except (ValueError, OverflowError):
        first = next(i for i, text in enumerate(fields) if not re.fullmatch(r"[+-]?\d{1,9}", text))
    if first is not None:
        allowed = f"0 to {classes - 1}, as phones.txt beside it says" if classes else "whole numbers from 0"
        raise SaatError(f"{where}: label {first} (counted from 0) is '{fields[first]}': expected {allowed}")
    return labels


def _read_names(path: Path) -> list[str]:
    """`NAME INDEX` or `INDEX NAME` a line, to a list; an index nobody has is named after itself."""
    rows = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for index, name in ((1, 0), (0, 1)):
        if rows and all(len(row) == 2 and row[index].isdecimal() for row in rows):
            names = {int(row[index]): row[name] for row in rows}
            if len(names) == len(rows):
                return [names.get(i, str(i)) for i in range(max(names) + 1)]
    raise SaatError(f"{path}: expected a phone's name and its number in each line, every number once")


def _read_textgrids(folder: Path) -> Phones:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".textgrid")
    if not files:
        raise SaatError(f"datarc.phones: no TextGrid below {folder}")
    read: dict[str, tuple[np.ndarray, list[str], float]] = {}
    broken = []
    for path in tqdm(files, desc="reading TextGrids", unit="file", disable=len(files) < 2000):
        if path.stem in read:
            raise SaatError(f"datarc.phones: {path.stem}.TextGrid is there twice below {folder}")
        try:
            read[path.stem] = _read_textgrid(path)
        except SaatError as error:
            broken.append(str(error))
    names = sorted({name for _, labels, _ in read.values() for name in labels})
    index = {name: i for i, name in enumerate(names)}
    alignments = {
        utterance: Alignment(starts, np.array([index[name] for name in labels]), end)
        for utterance, (starts, labels, end) in read.items()
    }
    return Phones(names, alignments, broken)


def _read_textgrid(path: Path) -> tuple[np.ndarray, list[str], float]:
    """Starts in seconds, names and the end of the intervals of the tier `phones` or `<speaker> - phones`."""
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
        tiers = [name for name in grid.tierNames if name == "phones" or name.endswith(" - phones")]
        entries = grid.getTier(tiers[0]).entries if len(tiers) == 1 else ()
    except (PraatioException, LookupError, ValueError, OSError) as error:
        reason = str(error).strip() or type(error).__name__
        raise SaatError(f"{path}: cannot be read as a TextGrid: {reason}") from error
    if len(tiers) != 1:
        raise SaatError(f"{path}: expected one tier named phones, has {', '.join(grid.tierNames)}")
    if not entries or not hasattr(entries[0], "end"):
        raise SaatError(f"{path}: its tier {tiers[0]} has no intervals")
    starts, names, end = [], [], 0.0
    for entry in entries:
        if entry.start > end:  # nothing is said about this stretch
            starts.append(end)
            names.append(SILENCE)
        starts.append(entry.start)
        names.append(phone_name(entry.label))
        end = entry.end
    return np.array(starts), names, end


def phone_name(label: str) -> str:
    """A label without its stress digit; whatever stands for no phone becomes SIL."""
    label = label.strip()
    if label.lower() in SILENT:
        return SILENCE
    return label[:-1] if STRESSED.fullmatch(label) else label
