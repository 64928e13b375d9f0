"""The corpus of all four probes: utterances in LibriSpeech's layout, and the train, dev and test split (SPEC 4)."""

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from saat.downstream.config import DataConfig
from saat.errors import SaatError
from saat.upstream.audio import AudioError, audio_length, find_audio

log = logging.getLogger("saat.downstream")

SPLITS = ("train", "dev", "test")
LAYOUT = "<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac"


@dataclass(frozen=True)
class Utterance:
    """One audio file of the corpus."""

    id: str
    speaker: str
    path: Path
    samples: int  # at 16 kHz, as its header says


def num_tokens(samples: int, stride: float) -> int:
    """Tokens that S3PRL's Featurizer leaves of an utterance."""
    return round(samples / stride)


def too_short(samples: int, stride: float) -> str | None:
    """What to say of an utterance that has no token; None of any other."""
    return f"{samples} samples, a token is {stride:g}" if num_tokens(samples, stride) < 1 else None


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def skip(problems: list[str], what: str, strict: bool) -> None:
    """Say what is left out, how often and the first few; SaatError instead where the user wants to be strict."""
    if not problems:
        return
    message = f"{len(problems)} {what}: " + some(problems)
    if strict:
        raise SaatError(f"{message}. Mend or remove them; or skip them with datarc.strict=False")
    log.warning("skipped %s", message)


def read_corpus(config: DataConfig, stride: float) -> dict[str, list[Utterance]]:
    """The utterances of each split, sorted by id.

    Files that are broken, empty, outside the layout or shorter than a token (by `stride`, samples from token to token)
    are named and skipped, or an error with `strict`.

    Errors: SaatError for a missing or empty folder, two files of one utterance, lists that are missing, overlap or
    name no utterance of the corpus, no usable file.
    """
    found = _find(config)
    lists = read_lists(config.splits) if config.splits is not None else None
    if lists is not None:
        found = _listed(found, lists, config.splits)
    utterances = _measure(found, stride, config.strict)
    split = _by_lists(utterances, lists, config.split_seed) if lists else _by_seed(utterances, config.split_seed)
    speakers = {utterance.speaker for utterance in utterances}
    log.info("%s; %d speakers", ", ".join(f"{len(split[s])} {s}" for s in SPLITS), len(speakers))
    return split


def _find(config: DataConfig) -> dict[str, Path]:
    """Utterance id to file, sorted by id."""
    folders = config.corpus if isinstance(config.corpus, list | tuple) else [config.corpus]
    if not folders or not all(isinstance(folder, str | Path) and str(folder) for folder in folders):
        raise SaatError(
            "downstream_expert.datarc.corpus must be a folder or a list of folders, "
            f"not {config.corpus!r}: -o config.downstream_expert.datarc.corpus=FOLDER"
        )
    found: dict[str, Path] = {}
    strangers = []
    for path in (path for folder in folders for path in find_audio(folder)):
        path = path.absolute()  # the speaker's folder may lie above the folder given
        if not path.stem.startswith(path.parent.parent.name) or not path.parent.parent.name:
            strangers.append(str(path))
        elif path.stem in found and found[path.stem].resolve() != path.resolve():
            raise SaatError(f"datarc.corpus: utterance {path.stem} is there twice: {found[path.stem]} and {path}")
        else:
            found[path.stem] = path
    if not found:
        raise SaatError(f"datarc.corpus: no file lies as LibriSpeech's do, {LAYOUT}; found {some(strangers)}")
    skip(strangers, f"files that do not lie as {LAYOUT}", config.strict)
    return dict(sorted(found.items()))


def read_lists(folder: str | Path) -> dict[str, list[str]]:
    """Split name to the utterance ids of `<split>_split.txt`, in order. Only the dev list may be absent."""
    folder = Path(folder).expanduser()
    lists: dict[str, list[str]] = {}
    for split in SPLITS:
        path = folder / f"{split}_split.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            lists[split] = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        elif split != "dev":
            raise SaatError(f"datarc.splits: no {path}; it lists the {split} utterances, one id a line")
    named: dict[str, str] = {}
    for split, ids in lists.items():
        for utterance in ids:
            if utterance in named:
                raise SaatError(
                    f"datarc.splits: {utterance} is in the lists of {named[utterance]} and {split} in {folder}"
                )
            named[utterance] = split
    return lists


def _listed(found: dict[str, Path], lists: dict[str, list[str]], folder: str) -> dict[str, Path]:
    """The files that some list names. A list may name more than the corpus, which may be a part of LibriSpeech."""
    for split, ids in lists.items():
        absent = [utterance for utterance in ids if utterance not in found]
        if len(absent) == len(ids):
            raise SaatError(f"datarc.splits: none of the {len(ids)} {split} utterances of {folder} is in the corpus")
        if absent:
            log.warning("%d of the %d %s utterances listed are not in the corpus", len(absent), len(ids), split)
    named = {utterance for ids in lists.values() for utterance in ids}
    kept = {utterance: path for utterance, path in found.items() if utterance in named}
    if len(kept) < len(found):
        log.info("%d utterances of the corpus are in no list: not used", len(found) - len(kept))
    return kept


def _measure(found: dict[str, Path], stride: float, strict: bool) -> list[Utterance]:
    utterances, broken, short = [], [], []
    for name, path in tqdm(found.items(), desc="reading headers", unit="file", disable=len(found) < 5000):
        try:
            samples = audio_length(path)
        except AudioError as error:
            broken.append(str(error))
            continue
        problem = too_short(samples, stride)
        if problem:
            short.append(f"{path} ({problem})")
        else:
            utterances.append(Utterance(name, path.parent.parent.name, path, samples))
    if not utterances:
        raise SaatError(f"datarc.corpus: none of the {len(found)} audio files can be used: {some(broken + short)}")
    skip(broken, "audio files that cannot be read", strict)
    skip(short, "audio files shorter than a token", strict)
    return utterances


def _by_lists(utterances: list[Utterance], lists: dict[str, list[str]], seed: int) -> dict[str, list[Utterance]]:
    split = {}
    for name in SPLITS:
        ids = set(lists.get(name, ()))
        split[name] = [utterance for utterance in utterances if utterance.id in ids]
    if "dev" not in lists:
        # Drawn from the training utterances, never a speaker's last one.
        dev = draw_tenth(split["train"], split["train"], f"dev-{seed}", at_least=lambda count: 0)
        split["train"], split["dev"] = _divide(split["train"], dev)
    return split


def _by_seed(utterances: list[Utterance], seed: int) -> dict[str, list[Utterance]]:
    """80, 10 and 10 %, stratified by speaker; of a speaker's utterances the first goes to train, the second to test."""
    single = [speaker for speaker, group in by_speaker(utterances).items() if len(group) == 1]
    if single:
        log.warning("%d speakers have one utterance, which goes to train: %s", len(single), some(single))
    test = draw_tenth(utterances, utterances, f"test-{seed}", at_least=lambda count: int(count >= 2))
    rest, test = _divide(utterances, test)
    dev = draw_tenth(rest, utterances, f"dev-{seed}", at_least=lambda count: int(count >= 3))
    train, dev = _divide(rest, dev)
    return {"train": train, "dev": dev, "test": test}


def by_speaker(utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    """Speaker to utterances, both sorted."""
    groups: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda utterance: (utterance.speaker, utterance.id)):
        groups.setdefault(utterance.speaker, []).append(utterance)
    return groups


def draw_tenth(pool: list[Utterance], whole: list[Utterance], seed: str, at_least: Callable[[int], int]) -> set[str]:
    """Ids of `pool` that make up a tenth of `whole`, from every speaker as near to a tenth as can be.

    Args:
        pool: what may be drawn; of each speaker one utterance stays.
        whole: what the tenth is of.
        at_least: how many of a speaker's utterances, given how many `whole` has.
    """
    pools = by_speaker(pool)
    counts = {speaker: len(group) for speaker, group in by_speaker(whole).items() if speaker in pools}
    room = {speaker: len(pools[speaker]) - 1 for speaker in counts}
    quota = {s: min(room[s], max(count // 10, at_least(count))) for s, count in counts.items()}
    # What rounding down left goes to the speakers it took most from.
    left = max(1, round(sum(counts.values()) / 10)) - sum(quota.values())
    chance = {speaker: random.Random(f"{seed}-{speaker}").random() for speaker in counts}
    for speaker in sorted(counts, key=lambda s: (-(counts[s] % 10), chance[s])):
        if left > 0 and quota[speaker] < room[speaker] and quota[speaker] * 10 < counts[speaker]:
            quota[speaker] += 1
            left -= 1
    drawn = set()
    for speaker, group in pools.items():
        drawn.update(u.id for u in random.Random(f"{seed}-{speaker}").sample(group, quota[speaker]))
    return drawn


def _divide(utterances: list[Utterance], chosen: set[str]) -> tuple[list[Utterance], list[Utterance]]:
    return [u for u in utterances if u.id not in chosen], [u for u in utterances if u.id in chosen]
