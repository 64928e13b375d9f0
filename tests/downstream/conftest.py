"""Tiny synthetic corpora in LibriSpeech's layout: a tone a speaker, and a second one a phone."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000
PHONES = ("SIL", "AA", "B", "S")


@pytest.fixture(autouse=True)
def tiny_models(one_thread):
    """Everything here is tiny."""


@dataclass
class TinyCorpus:
    """Where everything is. `labels`: utterance to its labels, 10 ms each; `samples`: utterance to its length."""

    folder: Path
    phones: Path
    labels: dict[str, list[int]]
    samples: dict[str, int]

    @property
    def utterances(self) -> list[str]:
        return sorted(self.labels)

    def file(self, utterance: str) -> Path:
        speaker, chapter, _ = utterance.split("-")
        return self.folder / speaker / chapter / f"{utterance}.flac"

    def write_phones(self) -> None:
        self.phones.parent.mkdir(exist_ok=True)
        lines = (" ".join(map(str, [name, *labels])) for name, labels in self.labels.items())
        self.phones.write_text("".join(f"{line}\n" for line in lines))

    def write_lists(self, **lists: list[str]) -> Path:
        folder = self.folder.parent / "splits"
        folder.mkdir(exist_ok=True)
        for split, names in lists.items():
            (folder / f"{split}_split.txt").write_text("".join(f"{name}\n" for name in names))
        return folder

    def datarc(self, **more) -> dict:
        return {"corpus": str(self.folder), "phones": str(self.phones), "num_workers": 0, **more}


@pytest.fixture
def make_corpus(tmp_path):
    """Makes a corpus: speakers 101, 102, …, each with so many utterances of 0.4 to 0.9 s."""

    def make(speakers: int = 4, utterances: int = 5, each: dict[int, int] | None = None) -> TinyCorpus:
        rng = np.random.default_rng(0)
        corpus = TinyCorpus(tmp_path / "audio", tmp_path / "alignments" / "labels.txt", {}, {})
        for speaker in range(speakers):
            for number in range((each or {}).get(speaker, utterances)):
                name = f"{101 + speaker}-7-{number:04d}"
                phones = rng.integers(0, len(PHONES), size=rng.integers(4, 9))
                labels = np.repeat(phones, 10)  # 0.1 s each
                samples = len(labels) * 160 + int(rng.integers(0, 160))
                time = np.arange(samples) / RATE
                pitch = np.repeat(np.array([0, 2000, 3200, 4800])[labels], 160)
                pitch = np.pad(pitch, (0, samples - len(pitch)), mode="edge")
                wav = 0.2 * np.sin(2 * np.pi * 250 * (speaker + 1) * time)
                wav += np.where(pitch > 0, 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE), 0)
                wav += 0.001 * rng.standard_normal(samples)
                corpus.labels[name], corpus.samples[name] = labels.tolist(), samples
                corpus.file(name).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(corpus.file(name), wav, RATE)
        corpus.write_phones()
        return corpus

    return make


@pytest.fixture
def mel_config(tmp_path) -> Path:
    """A model config for `-u saat_mel` whose features keep the speaker's tone: not normalised over the utterance."""
    path = tmp_path / "mel.yaml"
    path.write_text("audio: {n_mels: 24, delta: 0, stack: 3, cmvn: false}\n")
    return path


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A model config that makes any variant tiny."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "audio: {n_mels: 24, delta: 0, stack: 3}\n"
        "transformer: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 12, intermediate_size: 32, "
        "max_length: 50}\n"
    )
    return path


@pytest.fixture
def make_expert(tmp_path):
    """Makes an expert as S3PRL's runner does, for tokens of 6 values, 30 ms each."""

    def make(probe: str, datarc: dict, modelrc: dict | None = None, **kwargs):
        expert = import_module(f"s3prl.downstream.{probe}.expert").DownstreamExpert
        section = {"datarc": datarc, "modelrc": modelrc or {}}
        return expert(upstream_dim=6, upstream_rate=480, downstream_expert=section, expdir=str(tmp_path), **kwargs)

    return make


def textgrid(intervals: list[tuple[float, float, str]], tier: str = "phones") -> str:
    """A TextGrid as Praat and the Montreal Forced Aligner write it, with a tier of words before the phones."""
    end = intervals[-1][1]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for number, (name, entries) in enumerate((("words", [(0, end, "word")]), (tier, intervals)), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(entries)}"]
        for i, (start, stop, label) in enumerate(entries, 1):
            lines += [f"        intervals [{i}]:", f"            xmin = {start}", f"            xmax = {stop}"]
            lines += [f'            text = "{label}"']
    return "\n".join(lines) + "\n"


@pytest.fixture
def write_textgrid():
    def write(path: Path, intervals: list[tuple[float, float, str]], tier: str = "phones") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textgrid(intervals, tier))

    return write
