"""The corpus reader: layout, splits, and bad audio."""

import shutil

import numpy as np
import pytest
import soundfile

from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.downstream.data import LabelledCorpus
from saat.errors import SaatError


def read(corpus, stride=480, **more):
    return read_corpus(DataConfig(corpus=more.pop("folder", str(corpus.folder)), **more), stride)


def ids(split):
    return {name: [utterance.id for utterance in group] for name, group in split.items()}


def test_seeded_split_is_stratified_disjoint_and_repeatable(make_corpus):
    corpus = make_corpus(speakers=4, utterances=20)
    split = read(corpus)
    names = ids(split)
    assert sorted(sum(names.values(), [])) == corpus.utterances
    for speaker in ("101", "102", "103", "104"):
        counts = {name: sum(u.speaker == speaker for u in group) for name, group in split.items()}
        assert counts == {"train": 16, "dev": 2, "test": 2}
    assert ids(read(corpus)) == names
    assert ids(read(corpus, split_seed=1)) != names
    # What a speaker's utterances are drawn for does not depend on the other speakers.
    shutil.rmtree(corpus.folder / "104")
    assert [u for u in ids(read(corpus))["test"]] == [u for u in names["test"] if not u.startswith("104")]


def test_speakers_with_few_utterances(make_corpus, caplog):
    corpus = make_corpus(speakers=4, each={0: 1, 1: 2, 2: 3, 3: 10})
    split = read(corpus)
    count = {n: [sum(u.speaker == s for u in g) for s in ("101", "102", "103", "104")] for n, g in split.items()}
    assert count == {"train": [1, 1, 1, 8], "dev": [0, 0, 1, 1], "test": [0, 1, 1, 1]}
    assert "1 speakers have one utterance, which goes to train: 101" in caplog.text


def test_lists(make_corpus, caplog):
    corpus = make_corpus(speakers=4, utterances=10)
    train = [name for name in corpus.utterances if not name.endswith("9")]
    test = [name for name in corpus.utterances if name.endswith("9")]
    folder = corpus.write_lists(train=train + ["999-1-0001"], test=test)
    split = read(corpus, splits=str(folder))
    names = ids(split)
    assert names["test"] == test and sorted(names["train"] + names["dev"]) == train
    # A tenth of the 36, no speaker's twice.
    assert len(names["dev"]) == 4 and len({name[:3] for name in names["dev"]}) == 4
    assert ids(read(corpus, splits=str(folder))) == names
    assert "1 of the 37 train utterances listed are not in the corpus" in caplog.text
    corpus.write_lists(dev=train[:2], train=train[2:])
    names = ids(read(corpus, splits=str(folder)))
    assert names == {"train": train[2:], "dev": train[:2], "test": test}


def test_a_tenth_of_few_training_utterances(make_corpus):
    corpus = make_corpus(speakers=3, each={0: 2, 1: 2, 2: 3})
    folder = corpus.write_lists(
        train=["101-7-0000", "102-7-0000", "103-7-0000", "103-7-0001"], test=["101-7-0001", "102-7-0001", "103-7-0002"]
    )
    # At least one, and never a speaker's last one.
    assert [name[:3] for name in ids(read(corpus, splits=str(folder)))["dev"]] == ["103"]


def test_any_depth_several_folders_and_endings(make_corpus, tmp_path):
    corpus = make_corpus(speakers=3)
    one, two = tmp_path / "LibriSpeech" / "train-clean-5", tmp_path / "more" / "deep" / "er"
    shutil.copytree(corpus.folder / "101", one / "101")
    shutil.copytree(corpus.folder / "102", two / "102")
    data, rate = soundfile.read(one / "101" / "7" / "101-7-0000.flac")
    (one / "101" / "7" / "101-7-0000.flac").unlink()
    soundfile.write(one / "101" / "7" / "101-7-0000.wav", data, rate)
    split = read(corpus, folder=[str(tmp_path / "LibriSpeech"), str(tmp_path / "more")])
    assert {u.speaker for group in split.values() for u in group} == {"101", "102"}
    # A speaker's own folder, and the same files by two ways.
    alone = read(corpus, folder=[str(one / "101"), str(one / "101" / "7")])
    assert {u.speaker for group in alone.values() for u in group} == {"101"}


@pytest.mark.parametrize(
    "folder, message",
    [
        (None, "datarc.corpus must be a folder or a list of folders, not None"),
        (5, "datarc.corpus must be a folder"),
        ([], "datarc.corpus must be a folder"),
        ("/no/such/folder", "no such folder: /no/such/folder"),
    ],
)
def test_no_folder(folder, message):
    with pytest.raises(SaatError, match=message):
        read_corpus(DataConfig(corpus=folder), 480)


def test_empty_or_foreign_folder(make_corpus, tmp_path):
    corpus = make_corpus(speakers=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaatError, match="no audio below"):
        read(corpus, folder=str(tmp_path / "empty"))
    soundfile.write(tmp_path / "empty" / "song.wav", np.zeros(1600), 16000)
    with pytest.raises(SaatError, match="no file lies as LibriSpeech's do, <speaker>/<chapter>.*song.wav"):
        read(corpus, folder=str(tmp_path / "empty"))
    shutil.copytree(corpus.folder, tmp_path / "copy")
    with pytest.raises(SaatError, match="utterance 101-7-0000 is there twice"):
        read(corpus, folder=[str(corpus.folder), str(tmp_path / "copy")])


def test_bad_files_among_good_ones(make_corpus, caplog):
    corpus = make_corpus(speakers=2, utterances=6)
    bad = {name: corpus.file(name) for name in corpus.utterances[:4]}
    empty, garbage, none, short = bad.values()
    empty.write_bytes(b"")
    garbage.write_bytes(b"not audio at all" * 100)
    soundfile.write(none, np.zeros(0), 16000)
    soundfile.write(short, np.full(240, 0.1), 16000)  # half a token: S3PRL rounds it to none
    soundfile.write(corpus.folder / "stray.wav", np.zeros(1600), 16000)
    names = ids(read(corpus))
    assert sorted(sum(names.values(), [])) == corpus.utterances[4:]
    assert "skipped 3 audio files that cannot be read" in caplog.text
    assert (
        "skipped 1 audio files shorter than a token" in caplog.text and "(240 samples, a token is 480)" in caplog.text
    )
    assert "skipped 1 files that do not lie as <speaker>" in caplog.text and "stray.wav" in caplog.text
    (corpus.folder / "stray.wav").unlink()
    with pytest.raises(SaatError, match="3 audio files that cannot be read: .*101-7-0000.*datarc.strict=False"):
        read(corpus, strict=True)
    # With 10 ms tokens the short one has one and a half.
    assert len(sum(ids(read(corpus, stride=160)).values(), [])) == 9
    for name in corpus.utterances:
        corpus.file(name).write_bytes(b"")
    with pytest.raises(SaatError, match="none of the 12 audio files can be used"):
        read(corpus)


def test_bad_lists(make_corpus, tmp_path):
    corpus = make_corpus(speakers=2, utterances=3)
    names = corpus.utterances
    with pytest.raises(SaatError, match="no .*train_split.txt; it lists the train utterances"):
        read(corpus, splits=str(tmp_path / "nowhere"))
    folder = corpus.write_lists(train=names[:3], test=names[2:])
    with pytest.raises(SaatError, match=f"{names[2]} is in the lists of train and test in "):
        read(corpus, splits=str(folder))
    corpus.write_lists(test=["a", "b"])
    with pytest.raises(SaatError, match="none of the 2 test utterances of .* is in the corpus"):
        read(corpus, splits=str(folder))


def test_speakers_of_test_must_be_known(make_corpus):
    corpus = make_corpus(speakers=3, utterances=4)
    train = [name for name in corpus.utterances if not name.startswith("103")]
    folder = corpus.write_lists(train=train, test=[n for n in corpus.utterances if n.startswith("103")])
    config = DataConfig(**corpus.datarc(splits=str(folder)))
    with pytest.raises(
        SaatError, match="1 speakers of the test split are not in the training split: 103.*datarc.splits"
    ):
        LabelledCorpus("speaker", config, 480)
    assert LabelledCorpus("phone", config, 480).classes == ["0", "1", "2", "3"]


def test_alignments_missing_or_of_the_wrong_length(make_corpus, caplog):
    corpus = make_corpus(speakers=2, utterances=6)
    gone, short, long, *_ = names = corpus.utterances
    del corpus.labels[gone]
    corpus.labels[short] = corpus.labels[short][:-8]
    corpus.labels[long] = corpus.labels[long] + [0] * 8
    corpus.labels[names[3]] = corpus.labels[names[3]][:-3]  # 30 ms: the last label goes on
    corpus.write_phones()
    config = DataConfig(**corpus.datarc())
    labelled = LabelledCorpus("phone", config, 480)
    assert sorted(u.id for group in labelled.splits.values() for u in group) == names[3:]
    assert f"skipped 1 utterances without an alignment: {gone}" in caplog.text
    assert f"skipped 2 utterances whose alignment has the wrong length: {short} (" in caplog.text
    with pytest.raises(SaatError, match=f"1 utterances without an alignment: {gone}"):
        LabelledCorpus("phone", DataConfig(**corpus.datarc(strict=True)), 480)
    corpus.phones.write_text("other 0 0 0\n")
    with pytest.raises(SaatError, match="nothing is left: all 12 are utterances without an alignment: 101-7-0000, "):
        LabelledCorpus("phone", config, 480)


def test_real_speech(librispeech_small, caplog):
    """Every utterance of the real corpus fits its alignment, and the split is as its README says."""
    folder = librispeech_small / "alignments"
    config = DataConfig(
        corpus=str(librispeech_small), splits=str(folder), phones=str(folder / "converted_aligned_phones.txt")
    )
    corpus = LabelledCorpus("phone", config, 480)
    assert {name: len(group) for name, group in corpus.splits.items()} == {"train": 353, "dev": 39, "test": 111}
    assert len({u.speaker for u in corpus.splits["dev"]}) == 28 == len({u.speaker for u in corpus.splits["train"]})
    assert len(corpus.classes) == 41 and corpus.classes[corpus.majority(pooled=False)] == "SIL"
    assert "skipped" not in caplog.text
