"""The demo's corpus: its layout, its labels against its audio; that it is made whole, equal and only once."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "espeakng_loader", reason='needs espeakng-loader: pip install "s3prl-saat[demo]"', exc_type=ImportError
)

import soundfile  # noqa: E402

from saat.demo import corpus, espeak  # noqa: E402
from saat.demo.sentences import make_sentences  # noqa: E402

SPEAKERS = corpus.SPEAKERS[:3]
PER_SPEAKER = 10
VOWELS = [index for index, name in enumerate(corpus.PHONES) if name[0] in "AEIOU"]


def make_small(root: Path, per_speaker: int = PER_SPEAKER) -> Path:
    return corpus._make_corpus(root, SPEAKERS, per_speaker, progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture(scope="module")
def labels(root) -> dict[str, np.ndarray]:
    lines = (root / "alignments/converted_aligned_phones.txt").read_text().splitlines()
    return {line.split()[0]: np.array(line.split()[1:], dtype=int) for line in lines}


def read_audio(root: Path, utterance: str) -> np.ndarray:
    speaker, chapter, _ = utterance.split("-")
    audio, rate = soundfile.read(root / "train" / speaker / chapter / f"{utterance}.flac", dtype="int16")
    assert rate == 16000
    return audio


def read_split(root: Path, name: str) -> list[str]:
    return (root / "alignments" / f"{name}_split.txt").read_text().splitlines()


def test_layout_and_counts(root, labels):
    for speaker in SPEAKERS:
        folder = root / "train" / str(speaker.number) / "1"
        lines = (folder / f"{speaker.number}-1.trans.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines] == sorted(path.stem for path in folder.glob("*.flac"))
        assert len(lines) == PER_SPEAKER
        for line in lines:
            text = line.partition(" ")[2]
            assert text == text.upper() and set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
    names = dict(line.split() for line in (root / "alignments/phones.txt").read_text().splitlines())
    assert names["0"] == "SIL" and list(names) == [str(index) for index in range(len(corpus.PHONES))]
    facts = json.loads((root / "complete.json").read_text())
    assert facts["utterances"] == len(labels) == len(SPEAKERS) * PER_SPEAKER
    assert facts["recipe"] == corpus.RECIPE and facts["recipe"] in (root / "README.txt").read_text()
    seconds = sum(len(read_audio(root, utterance)) for utterance in labels) / 16000
    assert facts["hours"] == pytest.approx(seconds / 3600, abs=1e-4)


def test_one_label_each_10_ms_and_no_clipping(root, labels):
    for utterance, frames in labels.items():
        audio = read_audio(root, utterance)
        assert len(frames) == -(-len(audio) // 160)
        assert frames.min() == 0 and frames.max() < len(corpus.PHONES)
        assert frames[0] == frames[-1] == 0
        assert 16000 < len(audio) < 6.5 * 16000
        assert 2**13 < np.abs(audio.astype(int)).max() < 2**15 - 1


def test_labels_match_the_audio(root, labels):
    levels = {name: [] for name in ("silence", "burst", "vowel")}
    stops = [corpus.PHONES.index(name) for name in ("P", "T", "K")]
    for utterance, frames in labels.items():
        audio = read_audio(root, utterance).astype(float)
        rms = np.sqrt(np.mean(audio[: len(audio) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
        frames = frames[: len(rms)]
        inside = np.r_[False, (frames[1:-1] == frames[:-2]) & (frames[1:-1] == frames[2:]), False]
        levels["silence"].append(rms[inside & (frames == 0)])
        levels["burst"].append(rms[np.isin(frames, stops)])
        levels["vowel"].append(rms[inside & np.isin(frames, VOWELS)])
    silence, burst, vowel = (np.concatenate(levels[name]) for name in ("silence", "burst", "vowel"))
    assert silence.max() < vowel.min()  # frame by frame, away from boundaries
    assert np.median(silence) * 100 < np.median(vowel)
    assert np.median(silence) < np.median(burst) < np.median(vowel) / 3


def test_phoneme_starts_are_exact():
    """eSpeak's pauses are all zeros, its first sound comes right behind them: the starts have no offset."""
    speaker = espeak.Espeak()
    pauses, sounding = 0, []
    for text in make_sentences(30):
        speech = speaker.speak(text, "en-us+f1", 166, 52)
        assert speech.samples.dtype == np.int16 and speech.sample_rate == 22050
        bounds = [*speech.phonemes, (len(speech.samples), "end")]
        assert bounds == sorted(bounds, key=lambda bound: bound[0])
        for (start, name), (end, following) in zip(bounds, bounds[1:], strict=False):
            if name.startswith("_"):
                assert not speech.samples[start:end].any()
                pauses += 1
                if espeak.arpabet(following if following != "end" else "_") not in (
                    "SIL",
                    "P",
                    "T",
                    "K",
                    "CH",
                ):
                    sounding.append(np.abs(speech.samples[end : end + 22]).max())
    assert pauses > 30 and sounding and min(sounding) > 0


def test_closure_belongs_to_the_stop():
    samples = np.concatenate([np.full(100, 9), np.zeros(50), np.full(30, 9), np.zeros(20), np.full(40, 9)])
    phonemes = [(0, "a"), (150, "t"), (180, "_"), (200, "a")]
    speech = espeak.Speech(samples.astype(np.int16), 22050, phonemes)
    assert corpus._starts_with_closures(speech).tolist() == [0, 100, 180, 200]


def test_label_is_the_phoneme_at_the_centre():
    starts, names = np.array([0.0, 80.0, 81.0, 400.5]), ["AA", "B", "CH", "SIL"]
    got = [corpus.PHONES[label] for label in corpus._frame_labels(starts, names, 481)]
    assert got == ["B", "CH", "CH", "SIL"]  # centres at 80, 240, 400 and 560 samples
    assert corpus._frame_labels(np.array([100.0]), ["AA"], 160) == [0]


def test_splits(root, labels):
    train, test = read_split(root, "train"), read_split(root, "test")
    assert not set(train) & set(test) and set(train) | set(test) == set(labels)
    assert len(test) == len(labels) // 5
    speakers = {str(speaker.number) for speaker in SPEAKERS}
    assert {utterance.split("-")[0] for utterance in train} == speakers
    assert {utterance.split("-")[0] for utterance in test} == speakers
    lines = [line for path in root.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    texts = [line.partition(" ")[2] for line in lines]
    assert len(set(texts)) == len(texts)


def test_generation_is_deterministic(root, tmp_path):
    again = make_small(tmp_path / "again")
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".flac":
            np.testing.assert_array_equal(read_audio(root, path.stem), read_audio(again, path.stem))
        else:
            assert (root / path).read_bytes() == (again / path).read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch, error):
    write = soundfile.write
    written = []

    def stop_at_third(path, *args, **kwargs):
        written.append(path)
        if len(written) == 3:
            raise error("stopped")
        write(path, *args, **kwargs)

    monkeypatch.setattr(soundfile, "write", stop_at_third)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RuntimeError, match="stopped"):
        make_small(tmp_path / "corpus", 5)
    assert list(tmp_path.iterdir()) == []
    assert (make_small(tmp_path / "corpus", 5) / "complete.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_complete_corpus_is_returned_at_once(root, monkeypatch):
    monkeypatch.setattr(corpus, "_write_corpus", None)
    assert make_small(root) == corpus.make_corpus(root) == root


def test_another_process_may_finish_first(tmp_path, monkeypatch):
    write, target = corpus._write_corpus, tmp_path / "corpus"

    def write_while_another_finishes(*args):
        write(*args)
        monkeypatch.setattr(corpus, "_write_corpus", write)
        make_small(target, 5)

    monkeypatch.setattr(corpus, "_write_corpus", write_while_another_finishes)
    assert make_small(target, 5) == target
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="remove it, or name another folder"):
        make_small(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(RuntimeError, match="set SAAT_CACHE"):
        make_small(tmp_path / "mine.txt" / "corpus")


def test_empty_folder_is_used(tmp_path):
    (tmp_path / "corpus").mkdir()
    assert (make_small(tmp_path / "corpus", 5) / "complete.json").is_file()


def test_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SAAT_CACHE", str(tmp_path))
    assert corpus.default_root() == tmp_path / corpus.RECIPE
    monkeypatch.delenv("SAAT_CACHE")
    pytest.importorskip("platformdirs")
    assert corpus.default_root().name == corpus.RECIPE


def test_full_corpus_has_enough_of_everything():
    """At least 16 speakers with 20 sentences each, and at least 50 frames of every phoneme."""
    assert len({speaker.number for speaker in corpus.SPEAKERS}) == len(corpus.SPEAKERS) >= 16
    assert len({speaker.variant for speaker in corpus.SPEAKERS}) == len(corpus.SPEAKERS)
    assert corpus.SENTENCES_PER_SPEAKER >= 20
    speaker, samples = espeak.Espeak(), dict.fromkeys(corpus.PHONES, 0)
    assert {f"en-us+{known.variant}" for known in corpus.SPEAKERS} <= set(speaker.voices())
    for text in make_sentences(len(corpus.SPEAKERS) * corpus.SENTENCES_PER_SPEAKER):
        phonemes = speaker.speak(text, rate=165).phonemes
        for (start, name), (end, _) in zip(phonemes, phonemes[1:], strict=False):
            samples[espeak.arpabet(name)] += end - start
    assert min(samples.values()) > 50 * 220.5, samples


def test_sentences():
    sentences = make_sentences(500, seed=3)
    assert sentences == make_sentences(500, seed=3) and sentences[:100] == make_sentences(100, seed=3)
    assert sentences != make_sentences(500)
    assert len(set(sentences)) == 500
    assert all(5 <= len(sentence.split()) <= 17 and "{" not in sentence for sentence in sentences)


def test_errors_say_what_to_do(monkeypatch):
    speaker = espeak.Espeak()
    with pytest.raises(RuntimeError, match=r"no voice 'en-us\+m33'.*did you mean 'en-us\+m3'"):
        speaker.speak("hello", "en-us+m33")
    with pytest.raises(RuntimeError, match="no voice 'xx'"):
        speaker.speak("hello", "xx")
    with pytest.raises(ValueError, match="rate is 500"):
        speaker.speak("hello", rate=500)
    with pytest.raises(RuntimeError, match="does not know"):
        espeak.arpabet("'y:")
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(RuntimeError, match=r'pip install "s3prl-saat\[demo\]"'):
        espeak.Espeak()
