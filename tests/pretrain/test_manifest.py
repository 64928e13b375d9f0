"""Which files make a corpus, what the cache remembers, and what is said of files that cannot be used."""

import json
import os

import numpy as np
import pytest
import soundfile

from saat.errors import SaatError
from saat.pretrain import manifest
from saat.pretrain.manifest import load_corpus
from saat.upstream.audio import find_audio

from .conftest import speech_like, write_corpus

TOKEN = 480


@pytest.fixture
def measured(monkeypatch):
    """The files whose header was read."""
    seen = []
    real = manifest.audio_length
    monkeypatch.setattr(manifest, "audio_length", lambda path: seen.append(path.name) or real(path))
    return seen


def test_any_layout_rate_and_format(tmp_path):
    formats = {"a.wav": 16000, "deep/er/b.flac": 44100, "c.ogg": 22050, "d.wav": 8000}
    if "MP3" in soundfile.available_formats():
        formats["e.mp3"] = 44100
    for name, rate in formats.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mono = speech_like(0.5, 1, rate)
        soundfile.write(path, np.stack([mono, -0.5 * mono], 1), rate)
    corpus = load_corpus([tmp_path / "corpus"], TOKEN)
    assert corpus.names == sorted(formats)
    assert all(abs(n - 8000) <= 2 * 1152 for n in corpus.samples.tolist())
    assert not corpus.skipped and abs(corpus.hours * 3600 - 0.5 * len(formats)) < 0.5


def test_lengths_are_measured_once(tmp_path, measured):
    folder = write_corpus(tmp_path / "corpus", 4)
    first = load_corpus([folder], TOKEN)
    assert len(measured) == 4
    assert load_corpus([folder], TOKEN).fingerprint() == first.fingerprint() and len(measured) == 4
    changed = sorted(folder.rglob("*.flac"))[1]
    soundfile.write(changed, speech_like(2.0, 9), 16000)
    (folder / "new.wav").write_bytes(b"")
    soundfile.write(folder / "new.wav", speech_like(0.7, 9), 16000)
    again = load_corpus([folder], TOKEN)
    assert sorted(measured[4:]) == sorted([changed.name, "new.wav"])
    assert 32000 in again.samples.tolist() and len(again.paths) == 5
    assert again.fingerprint() != first.fingerprint()


def test_cache_drops_removed_files_and_survives_damage(tmp_path, measured):
    folder = write_corpus(tmp_path / "corpus", 3)
    load_corpus([folder], TOKEN)
    sorted(folder.rglob("*.flac"))[0].unlink()
    soundfile.write(folder / "x.wav", speech_like(0.7, 9), 16000)
    load_corpus([folder], TOKEN)
    (cache,) = (tmp_path / "cache" / "manifests").glob("*")
    assert len(json.loads(cache.read_text())["files"]) == 3
    for damage in ("{", "[]", '{"version": 1, "files": {"a": 3}}', '{"version": 99, "files": {}}'):
        cache.write_text(damage)
        measured.clear()
        assert len(load_corpus([folder], TOKEN).paths) == 3 and len(measured) == 3


def test_unwritable_cache_is_said_and_ignored(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAAT_CACHE", str(tmp_path / "file"))
    assert len(load_corpus([write_corpus(tmp_path / "corpus", 2)], TOKEN).paths) == 2
    assert "cannot be remembered" in capsys.readouterr().err


def test_unusable_files_are_named_and_skipped(tmp_path, capsys):
    folder = write_corpus(tmp_path / "corpus", 3)
    (folder / "broken.flac").write_bytes(b"not audio")
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "short.wav", speech_like(0.02, 0), 16000)
    soundfile.write(folder / "nothing.wav", np.zeros(0, np.float32), 16000)
    listed = tmp_path / "exp" / "skipped.txt"
    corpus = load_corpus([folder], TOKEN, skipped_file=listed)
    assert len(corpus.paths) == 3
    said = capsys.readouterr().err
    assert "skipped 4 of 7 audio files" in said and str(listed) in said
    for name in ("broken.flac", "empty.wav", "short.wav", "nothing.wav"):
        assert name in said and name in listed.read_text()
    assert "320 samples at 16 kHz, shorter than a token of 480" in said
    with pytest.raises(SaatError, match=r"4 of 7 .* cannot be used \(strict\)"):
        load_corpus([folder], TOKEN, strict=True)


def test_few_of_many_are_named(tmp_path, capsys):
    folder = write_corpus(tmp_path / "corpus", 2)
    for i in range(9):
        (folder / f"bad{i}.wav").write_bytes(b"")
    load_corpus([folder], TOKEN, skipped_file=tmp_path / "skipped.txt")
    said = capsys.readouterr().err
    assert "bad4" in said and "bad5" not in said and "and 4 more" in said
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 9


def test_nothing_usable(tmp_path):
    with pytest.raises(SaatError, match="no such folder: .*nowhere"):
        load_corpus([tmp_path / "nowhere"], TOKEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaatError, match="no audio below .*empty"):
        load_corpus([tmp_path / "empty"], TOKEN)
    (tmp_path / "empty" / "a.wav").write_bytes(b"x")
    with pytest.raises(SaatError, match="no audio file can be used: 1 of 1 .*(\n.*)*a.wav"):
        load_corpus([tmp_path / "empty"], TOKEN)


def test_only_listed_utterances(tmp_path, measured):
    folder = write_corpus(tmp_path / "corpus", 6)
    first = min(folder.rglob("*.flac"), key=lambda path: path.stem)
    first.rename(first.with_name("0 Interview 01.flac"))  # an id is a line, spaces and all
    ids = sorted(path.stem for path in folder.rglob("*.flac"))
    (tmp_path / "lists").mkdir()
    split = tmp_path / "lists" / "train_split.txt"
    split.write_text("\n".join([*ids[:2], "elsewhere"]))
    for given in (split, tmp_path / "lists"):
        corpus = load_corpus([folder], TOKEN, given)
        assert [os.path.basename(path)[:-5] for path in corpus.paths] == ids[:2]
    assert len(measured) == 2
    assert len(load_corpus([folder], TOKEN).paths) == 6 and len(measured) == 6
    split.write_text("elsewhere")
    with pytest.raises(SaatError, match="none of the utterances listed in"):
        load_corpus([folder], TOKEN, split)
    with pytest.raises(SaatError, match="no such list of utterances: .*nolist"):
        load_corpus([folder], TOKEN, tmp_path / "nolist")
    split.write_text("")
    with pytest.raises(SaatError, match="lists no utterance"):
        load_corpus([folder], TOKEN, split)


def test_folder_within_a_folder_counts_once(tmp_path):
    folder = write_corpus(tmp_path / "corpus", 4)
    assert len(load_corpus([folder, folder / "100"], TOKEN).paths) == 4


def test_linked_folders_are_followed_once(tmp_path):
    """Labs link their splits; a link may also lead back up, sideways, or to nothing."""
    store = write_corpus(tmp_path / "store", 4)
    corpus = tmp_path / "labs" / "corpus"
    soundfile.write(write_corpus(corpus / "own", 2) / "z.wav", speech_like(0.7, 9), 16000)
    (corpus / "linked").symlink_to(store)
    (store / "100" / "loop").symlink_to(corpus)
    (corpus / "twice").symlink_to(store / "100")
    (corpus / "up").symlink_to(tmp_path)
    (corpus / "nowhere").symlink_to(tmp_path / "nowhere")
    (corpus / "nothing.flac").symlink_to(tmp_path / "nothing.flac")
    (corpus / "file.flac").symlink_to(store / "101" / "7" / "101-7-0001.flac")
    names = [path.relative_to(corpus).as_posix() for path in find_audio(corpus)]
    assert (
        names == sorted(names)
        and [name.split("/")[0] for name in names] == ["file.flac"] + ["linked"] * 4 + ["own"] * 3
    )
    assert len(load_corpus([corpus], TOKEN).paths) == 8
    assert len(load_corpus([corpus, store], TOKEN).paths) == 8
