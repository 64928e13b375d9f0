"""The demo's corpus: a few hundred English sentences by 20 synthetic speakers, with exact phoneme labels.

eSpeak NG speaks it on the user's machine in seconds (nothing is downloaded). It's laid out as LibriSpeech, so
that everything that reads LibriSpeech reads it. The labels come from the synthesizer, not from an alignment.
"""

import contextlib
import json
import math
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from saat.cache import cache_folder
from saat.demo.espeak import ARPABET, DemoError, Espeak, Speech, arpabet
from saat.demo.sentences import make_sentences

RECIPE = "espeak-demo-v1"  # to be counted up with every change of what is written
SAMPLE_RATE = 16000
FRAME = 160  # samples: one label each 10 ms
PHONES = ("SIL", *sorted(set(ARPABET.values())))  # label = index
SENTENCES_PER_SPEAKER = 20
TEST_EVERY = 5  # every 5th utterance of each speaker is for testing
CHAPTER = 1


class Speaker(NamedTuple):
    """One synthetic speaker: number, eSpeak's voice variant, pitch (0 to 99), rate (words a minute)."""

    number: int
    variant: str
    pitch: int
    rate: int


# Variants with an echo are left out (it would sound in the silence), and those that differ by pitch alone.
SPEAKERS = (
    Speaker(9001, "m1", 42, 158),
    Speaker(9002, "f1", 52, 166),
    Speaker(9003, "m3", 58, 176),
    Speaker(9004, "Annie", 46, 162),
    Speaker(9005, "m4", 36, 148),
    Speaker(9006, "aunty", 56, 152),
    Speaker(9007, "m5", 64, 180),
    Speaker(9008, "belinda", 44, 172),
    Speaker(9009, "m6", 50, 164),
    Speaker(9010, "linda", 60, 178),
    Speaker(9011, "m7", 45, 170),
    Speaker(9012, "steph", 48, 156),
    Speaker(9013, "m8", 38, 154),
    Speaker(9014, "shelby", 54, 174),
    Speaker(9015, "max", 62, 160),
    Speaker(9016, "zac", 40, 168),
    Speaker(9017, "norbert", 55, 150),
    Speaker(9018, "grandma", 43, 146),
    Speaker(9019, "gustave", 59, 175),
    Speaker(9020, "Nguyen", 53, 165),
)

README = """\
A small speech corpus for trying things out. No human voice is in it: eSpeak NG {espeak_ng} spoke every
sentence on this machine, and the package s3prl-saat (saat.demo.corpus.make_corpus) wrote it down.
It is a cache: deleted, it is made again, the same, when it is next needed.

{speakers} speakers, {utterances} utterances ({train_utterances} in train_split.txt, {test_utterances} in \
test_split.txt), {hours:.2f} hours; 16 kHz, 16-bit FLAC.
Every speaker is in both splits; no sentence is there twice. Folders and transcripts are LibriSpeech's.

alignments/converted_aligned_phones.txt: one line an utterance, its name, then one label each 10 ms. Label j
covers 0.01 j to 0.01 (j + 1) seconds and is the phoneme at its centre, as the synthesizer reports it (exact,
not aligned); the closure of a stop belongs to the stop.
alignments/phones.txt: the {phones} labels, index and ARPAbet name (SIL: silence).
complete.json: these numbers; recipe {recipe}.
"""


def default_root() -> Path:
    """Where the corpus lies unless told: in $SAAT_CACHE if that is set, else in the user's cache folder."""
    return cache_folder() / RECIPE


def make_corpus(root: Path | None = None, progress: bool = True) -> Path:
    """The folder of the complete corpus, made first where it's not there yet (some seconds; about 30 MB).

    root: the corpus' own folder (None: `default_root()`). progress: draw a progress bar.

    Writes `train/<speaker>/<chapter>/*.flac` (16 kHz, 16 bit) and `*.trans.txt` as LibriSpeech does,
    `alignments/` (`converted_aligned_phones.txt`: one label each 10 ms; `phones.txt`; `train_split.txt`;
    `test_split.txt`), `README.txt` and `complete.json`.

    Raises DemoError (a RuntimeError) where espeakng-loader is missing, or `root` holds something else, or it
    cannot be written.
    """
    return _make_corpus(default_root() if root is None else root, SPEAKERS, SENTENCES_PER_SPEAKER, progress)


def _make_corpus(root: Path, speakers: tuple[Speaker, ...], per_speaker: int, progress: bool) -> Path:
    root = Path(root).expanduser().resolve()
    if _is_complete(root):
        return root
    # Made beside its place and then renamed, so that nobody ever sees half a corpus. The name is this call's
    # own: of two processes at once, one has its corpus taken and the other drops its equal one.
    work = root.with_name(f".{root.name}.{uuid.uuid4().hex[:12]}")
    try:
        work.mkdir(parents=True)
        _write_corpus(work, speakers, per_speaker, progress)
        with contextlib.suppress(OSError):
            root.rmdir()  # an empty folder made beforehand; any other stays
        try:
            work.rename(root)
        except OSError:
            if not _is_complete(root):  # so no other process was first
                raise
    except (OSError, soundfile.SoundFileError) as error:
        raise DemoError(
            f"the demo corpus cannot be written to {root} ({error}): "
            "set SAAT_CACHE to a folder that is writable and has 100 MB free"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _is_complete(root: Path) -> bool:
    """Whether `root` holds the corpus; False where nothing is. Raises DemoError for anything else there."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        recipe = json.loads((root / "complete.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        recipe = None
    if recipe != RECIPE:
        raise DemoError(f"{root} is there but is no {RECIPE} corpus: remove it, or name another folder")
    return True


def _write_corpus(root: Path, speakers: tuple[Speaker, ...], per_speaker: int, progress: bool) -> None:
    espeak = Espeak()
    texts = iter(make_sentences(len(speakers) * per_speaker))  # all differ: no test sentence is in train
    labels: dict[str, list[int]] = {}
    split: dict[str, list[str]] = {"train": [], "test": []}
    samples = 0
    with tqdm(
        total=len(speakers) * per_speaker,
        unit="utterance",
        desc="speaking the demo corpus",
        disable=None if progress else True,  # None: drawn on a terminal only
    ) as bar:
        for speaker in speakers:
            folder = root / "train" / str(speaker.number) / str(CHAPTER)
            folder.mkdir(parents=True)
            transcripts = []
            for index in range(per_speaker):
                utterance = f"{speaker.number}-{CHAPTER}-{index:04d}"
                text = next(texts)
                speech = espeak.speak(text, f"en-us+{speaker.variant}", speaker.rate, speaker.pitch)
                audio, starts = _render(speech, np.random.default_rng([speaker.number, index]))
                soundfile.write(folder / f"{utterance}.flac", audio, SAMPLE_RATE, subtype="PCM_16")
                names = [arpabet(name) for _, name in speech.phonemes]
                labels[utterance] = _frame_labels(starts, names, len(audio))
                split["test" if index % TEST_EVERY == TEST_EVERY - 1 else "train"].append(utterance)
                transcripts.append(f"{utterance} " + re.sub("[^A-Z' ]", "", text.upper()))
                samples += len(audio)
                bar.update()
            _write_lines(folder / f"{speaker.number}-{CHAPTER}.trans.txt", transcripts)

    folder = root / "alignments"
    folder.mkdir()
    _write_lines(
        folder / "converted_aligned_phones.txt",
        (" ".join(map(str, [utterance, *frames])) for utterance, frames in labels.items()),
    )
    _write_lines(folder / "phones.txt", (f"{index} {name}" for index, name in enumerate(PHONES)))
    for name, utterances in split.items():
        _write_lines(folder / f"{name}_split.txt", utterances)

    facts = {
        "recipe": RECIPE,
        "espeak_ng": espeak.version,
        "speakers": len(speakers),
        "utterances": len(labels),
        "train_utterances": len(split["train"]),
        "test_utterances": len(split["test"]),
        "phones": len(PHONES),
        "hours": round(samples / SAMPLE_RATE / 3600, 4),
    }
    (root / "README.txt").write_text(README.format(**facts), encoding="utf-8", newline="\n")
    _write_lines(root / "complete.json", [json.dumps(facts, indent=2)])


def _render(speech: Speech, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The utterance as written, and where its phonemes start.

    Returns (N,) int16 at 16 kHz, its peak at half of full scale, with 0.1 to 0.3 s of silence at either end
    and a noise floor of about -73 dBFS; and (P,) float starts of the P phonemes in those samples.
    """
    speed = SAMPLE_RATE / speech.sample_rate
    audio = resample_poly(speech.samples.astype(np.float64), SAMPLE_RATE, speech.sample_rate)
    audio *= 2**14 / np.abs(audio).max()
    before, after = (int(n) for n in rng.integers(SAMPLE_RATE // 10, 3 * SAMPLE_RATE // 10, size=2))
    audio = np.pad(np.round(audio).astype(np.int16), (before, after))
    # eSpeak's silence is all zeros, which no microphone gives and whose log spectrum is without bound.
    audio += rng.integers(-12, 13, size=len(audio), dtype=np.int16)
    return audio, before + speed * _starts_with_closures(speech)


def _starts_with_closures(speech: Speech) -> np.ndarray:
    """The phonemes' starts in eSpeak's samples, (P,) int, each moved back over the silence right before it.

    eSpeak reports a phoneme after the gap that it leaves for it, so the closure of a stop (30 to 50 ms of
    zeros) would be labelled as the vowel before. A gap that follows a pause stays silence.
    """
    is_sound = speech.samples != 0
    # sound_end[i]: one past the last nonzero sample of the first i samples
    sound_end = np.maximum.accumulate(np.r_[0, np.where(is_sound, np.arange(len(is_sound)) + 1, 0)])
    starts = np.array([start for start, _ in speech.phonemes])
    for index in range(1, len(starts)):
        if not speech.phonemes[index - 1][1].startswith("_"):
            starts[index] = max(starts[index - 1], sound_end[starts[index]])
    return starts


def _frame_labels(starts: np.ndarray, names: list[str], num_samples: int) -> list[int]:
    """ceil(num_samples / 160) labels: each the phoneme at its interval's centre, silence before the first.

    starts: (P,) in samples, not decreasing. names: the P phonemes, as in `PHONES`; the last lasts to the end.
    """
    labels = np.array([PHONES.index(name) for name in ("SIL", *names)])
    centres = (np.arange(math.ceil(num_samples / FRAME)) + 0.5) * FRAME
    return labels[np.searchsorted(starts, centres, side="right")].tolist()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
