"""Features on disk: what the upstream gave, extracted once, never half-read."""

import json
import shutil
import threading
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from s3prl import hub

from saat.downstream import feature_store
from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.downstream.extraction import Extractor
from saat.downstream.fast import extract
from saat.downstream.feature_store import stored_features
from saat.errors import SaatError

MODEL = {"upstream": "saat_mel", "config": 1}


@pytest.fixture
def utterances(make_corpus):
    corpus = make_corpus(speakers=2, utterances=4)
    return [u for split in read_corpus(DataConfig(corpus=str(corpus.folder)), 480).values() for u in split]


@pytest.fixture
def upstream(tiny_config):
    return hub.saat_ours_untrained(model_config=str(tiny_config))


@pytest.fixture
def extracted_ids(monkeypatch):
    """The utterances that were extracted, each time."""
    seen, whole = [], Extractor.__call__

    def call(self, *args, **kwargs):
        for utterance in whole(self, *args, **kwargs):
            seen.append(utterance.id)
            yield utterance

    monkeypatch.setattr(Extractor, "__call__", call)
    return seen


def keep(folder, upstream, utterances, model=MODEL, layers=None, **options):
    extractor = Extractor(upstream, "last_hidden_state" if layers is None else "hidden_states", layers)
    return stored_features(folder, model, extractor, utterances, progress=False, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_kept_is_what_the_upstream_gave(tmp_path, upstream, utterances, dtype):
    stored = keep(tmp_path / "features", upstream, utterances, dtype=dtype)
    memory = extract(upstream, utterances, progress=False)
    assert stored.samples == memory.samples and set(stored.layers[0]) == set(memory.features)
    for name, features in memory.features.items():
        kept = stored.layers[0][name]
        assert kept.dtype == getattr(torch, dtype) and torch.equal(kept, features.to(kept.dtype))
        assert torch.allclose(kept.float(), features, rtol=1e-3 if dtype == "float16" else 0, atol=1e-6)


def test_every_hidden_state(tmp_path, upstream, utterances):
    stored = keep(tmp_path / "features", upstream, utterances, layers=[0, 1, 2])
    for utterance in utterances:
        wav = torch.from_numpy(soundfile.read(utterance.path, dtype="float32")[0])
        with torch.no_grad():
            states = upstream([wav])["hidden_states"]
        for layer, state in zip(stored.layers, states, strict=True):
            tokens = layer[utterance.id]
            assert len(tokens) == round(len(wav) / 480)
            assert torch.allclose(tokens, state[0, : len(tokens)], atol=1e-4)


def test_extracted_once_and_anew_when_something_changed(tmp_path, upstream, utterances, extracted_ids):
    folder = tmp_path / "features"

    def count(**options) -> int:
        extracted_ids.clear()
        keep(folder, **({"upstream": upstream, "utterances": utterances} | options))
        return len(extracted_ids)

    assert count() == 8 and count() == 0 and count(utterances=utterances[::-1]) == 0
    assert count(model={**MODEL, "config": 2}) == 8
    assert count(layers=[1]) == 8 and count(layers=[2]) == 8
    assert count(dtype="float16") == 8
    assert count(utterances=utterances[:5]) == 5
    wav, _ = soundfile.read(utterances[0].path)
    soundfile.write(utterances[0].path, 0.5 * wav[::-1], 16000)  # as long as before
    assert count() == 8 and count() == 0
    as_wav = [replace(utterance, path=utterance.path.with_suffix(".wav")) for utterance in utterances]
    for utterance in as_wav:
        soundfile.write(utterance.path, soundfile.read(utterance.path.with_suffix(".flac"))[0], 16000)
    assert count(utterances=as_wav) == 8 and count(utterances=as_wav) == 0
    soundfile.write(as_wav[0].path, 0.5 * wav, 16000)  # and the file as large as before
    assert count(utterances=as_wav) == 8
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".part") == []


def test_an_interrupted_extraction_leaves_nothing(tmp_path, upstream, utterances, monkeypatch, extracted_ids):
    folder, whole = tmp_path / "features", feature_store._write

    def interrupted(part, *args):
        (part / "index.json").write_text("{}")
        (part / "layer-0.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_store, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(folder, upstream, utterances)
    assert [path.suffix for path in folder.iterdir()] in ([".lock"], [])
    monkeypatch.setattr(feature_store, "_write", whole)
    place = next(keep(folder, upstream, utterances).layers[0].rows and folder.glob("saat_mel-*"))
    # What kill -9 leaves: an unfinished folder; and one that lost its end.
    shutil.copytree(place, place.with_name(f".{place.name}.part"))
    with (place / "layer-0.bin").open("r+b") as file:
        file.truncate(100)
    extracted_ids.clear()
    assert len(keep(folder, upstream, utterances).samples) == 8 and len(extracted_ids) == 8
    (place / "index.json").write_text('{"tokens": ')
    assert len(keep(folder, upstream, utterances).samples) == 8 and len(extracted_ids) == 16
    assert not list(folder.glob(".*.part"))


def test_two_at_once_extract_once(tmp_path, upstream, utterances, extracted_ids):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(keep(tmp_path / "features", upstream, utterances)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(extracted_ids) == 8 and len(found) == 2
    assert torch.equal(found[0].layers[0].tokens, found[1].layers[0].tokens)


def test_too_little_disk_is_told_before_anything_is_computed(tmp_path, upstream, utterances, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 9999))
    monkeypatch.setattr(Extractor, "__call__", None)
    tokens = sum(round(u.samples / 480) for u in utterances)
    needed = f"{tokens} tokens need {tokens * 24 * 4 / 1e9:.2f} GB"
    with pytest.raises(SaatError, match=f"--features: .*{needed}.* 0.00 GB free, --dtype float16 needs half.*another"):
        keep(tmp_path / "features", upstream, utterances)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaatError, match="--features: cannot keep features in .*file"):
        keep(tmp_path / "file", upstream, utterances)


def spoil(path):
    soundfile.write(path.with_suffix(".wav"), np.full(8000, np.nan), 16000, subtype="FLOAT")
    path.with_suffix(".wav").rename(path)


def test_bad_files_are_named_each_time(tmp_path, upstream, utterances, caplog):
    bad = utterances[0].path
    spoil(bad)
    for _ in range(2):
        caplog.clear()
        stored = keep(tmp_path / "features", upstream, utterances)
        assert len(stored.layers[0]) == 7 and utterances[0].id not in stored.samples
        assert f"skipped 1 audio files that turned out bad: {bad}" in caplog.text


def test_bad_files_of_one_corpus_are_not_those_of_the_next(upstream, utterances):
    extractor = Extractor(upstream)
    for bad, corpus in ((utterances[0], utterances[:4]), (utterances[4], utterances[4:])):
        spoil(bad.path)
        list(extractor(corpus, progress=False))
        assert [str(bad.path) in line for line in extractor.bad] == [True]


def test_what_float16_cannot_hold(tmp_path, upstream, utterances, monkeypatch):
    whole = Extractor._states
    monkeypatch.setattr(Extractor, "_states", lambda self, wavs: [[1e6 * f for f in s] for s in whole(self, wavs)])
    with pytest.raises(SaatError, match="do not fit float16: use --dtype float32"):
        keep(tmp_path / "features", upstream, utterances, dtype="float16")
    assert not list((tmp_path / "features").glob("saat_mel-*"))
    index = next(iter(keep(tmp_path / "features", upstream, utterances).layers[0].values()))
    assert index.abs().max() > 65504


def test_the_index_is_plain(tmp_path, upstream, utterances):
    keep(tmp_path / "features", upstream, utterances)
    (place,) = (tmp_path / "features").glob("saat_mel-*")
    index = json.loads((place / "index.json").read_text())
    assert index["tokens"] == sum(tokens for _, tokens, _ in index["utterances"].values()) and index["dim"] == 24
