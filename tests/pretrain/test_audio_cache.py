"""Decoded audio on disk: the same samples as without, bounded, safe."""

import os
import shutil
import time

import numpy as np
import pytest
import soundfile
import torch

from saat.pretrain import audio_cache
from saat.pretrain.audio_cache import AudioCache
from saat.pretrain.data import Crops, loader
from saat.pretrain.manifest import load_corpus
from saat.upstream.audio import AudioError, read_audio
from saat.upstream.config import model_config

from .conftest import TINY, same, speech_like


@pytest.fixture
def mixed(tmp_path):
    """16 kHz and other rates, whole and compressed, mono and stereo."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, (ending, rate) in enumerate(
        [("flac", 16000), ("wav", 44100), ("ogg", 16000), ("wav", 8000), ("ogg", 22050)]
    ):
        mono = speech_like(1.1 + 0.1 * i, i, rate)
        soundfile.write(folder / f"{i}.{ending}", np.stack([mono, 0.3 * mono], 1) if i == 3 else mono, rate)
    soundfile.write(folder / "loud.wav", 1.5 * speech_like(1.0, 9) / 0.1, 16000, subtype="FLOAT")
    return folder


@pytest.fixture
def config():
    return model_config("saat_ours", (TINY["model"], "test"))


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    seen = []
    monkeypatch.setattr(audio_cache, "read_audio", lambda path: seen.append(path) or read_audio(path))
    return seen


def kept(tmp_path) -> list:
    return sorted((tmp_path / "cache" / "audio").glob("*/*"))


def test_same_batches_and_each_file_decoded_once(mixed, config, tmp_path, decoded):
    corpus = load_corpus([mixed], 480)
    plain, cached = Crops(corpus, config, 4, 4, 2), Crops(corpus, config, 4, 4, 2, cache_gb=1)
    for index in range(9):
        assert same(list(plain[index]), list(cached[index]))
    assert sorted(decoded) == corpus.paths and len(kept(tmp_path)) == 6
    kinds = {np.load(path).dtype.name for path in kept(tmp_path)}
    assert kinds == {"int16", "float32"}


def test_workers_share_it(mixed, config, tmp_path):
    corpus = load_corpus([mixed], 480)
    cached = loader(Crops(corpus, config, 3, 3, 2, cache_gb=1), 0, 12, 3, False)
    plain = loader(Crops(corpus, config, 3, 3, 2), 0, 12, 0, False)
    assert all(same(list(a), list(b)) for a, b in zip(plain, cached, strict=True))
    assert [path.suffix for path in kept(tmp_path)] == [".npy"] * 6


def test_changed_files_and_damaged_entries(mixed, tmp_path, decoded):
    cache, path = AudioCache(torch.tensor([99999]), 1), mixed / "1.wav"
    before = cache.read(str(path), 0, 8000)
    (entry,) = kept(tmp_path)
    for damage in (b"", b"x" * 50, entry.read_bytes()[:2000]):
        entry.write_bytes(damage)
        assert torch.equal(cache.read(str(path), 0, 8000), before)
    assert len(decoded) == 4
    soundfile.write(path, speech_like(1.3, 77), 16000)
    assert torch.equal(cache.read(str(path), 160, 8000), read_audio(path, 160, 8000))
    path.unlink()
    with pytest.raises(AudioError, match="1.wav: cannot be read as audio"):
        cache.read(str(path), 0, 8000)


def test_space_is_bounded_and_told(mixed, config, tmp_path, capsys):
    corpus = load_corpus([mixed], 480)
    gigabytes = (4 * int(corpus.samples[:3].sum()) + 1) / 1e9
    crops = Crops(corpus, config, 6, 6, 2, cache_gb=gigabytes)
    assert "3 of 6 utterances" in capsys.readouterr().out
    crops[0]
    assert len(kept(tmp_path)) == 3 and sum(path.stat().st_size for path in kept(tmp_path)) <= gigabytes * 1e9 + 3 * 128


def test_full_disk_is_said_once(mixed, config, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    corpus = load_corpus([mixed], 480)
    crops = Crops(corpus, config, 2, 2, 2, cache_gb=1)
    batches = list(loader(crops, 0, 9, 2, False))
    assert all(not batch.problems and len(batch.numbers) == 2 for batch in batches)
    assert 1 <= capfd.readouterr().err.count("no more decoded audio is kept") <= 2  # two workers may be as fast
    assert not kept(tmp_path) and bool(crops.cache.off)
    crops[0]
    assert "no more" not in capfd.readouterr().err


def test_left_overs_of_killed_processes_are_removed(tmp_path):
    folder = tmp_path / "cache" / "audio" / "ab"
    folder.mkdir(parents=True)
    for name, age in (("old.part", 2 * audio_cache.STALE), ("new.part", 60), ("old.npy", 2 * audio_cache.STALE)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    AudioCache(torch.tensor([1]), 1)
    assert {path.name for path in folder.iterdir()} == {"new.part", "old.npy"}
