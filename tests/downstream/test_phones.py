"""Labels by time: token centres, the text file and TextGrids, and everything that can be wrong with them."""

import numpy as np
import pytest

from saat.downstream.corpus import num_tokens
from saat.downstream.phones import phone_name, read_phones, token_centres
from saat.errors import SaatError


def centre_by_frames(i: int, stride: int) -> float:
    """The definition: the mean of the centres, at 160 t, of the frames a token is made of (half frames for 240)."""
    frames = stride / 160
    first, last = i * frames, i * frames + frames - 1
    return 160 * (first + last) / 2


@pytest.mark.parametrize("stride", [160, 240, 320, 480])
def test_centres(stride):
    centres = token_centres(50, stride)
    assert centres.tolist() == [centre_by_frames(i, stride) / 16000 for i in range(50)]
    if stride == 480:
        assert (centres * 16000).tolist() == [480 * i + 160 for i in range(50)]


@pytest.mark.parametrize("stride", [160, 320, 480])
def test_text_labels_are_those_at_the_centre(make_corpus, stride):
    corpus = make_corpus()
    phones = read_phones(corpus.phones)
    assert phones.names == ["0", "1", "2", "3"]
    for name, labels in corpus.labels.items():
        tokens = num_tokens(corpus.samples[name], stride)
        expected = []
        for i in range(tokens):
            j = int(centre_by_frames(i, stride) // 160)  # label j covers samples [160 j, 160 (j + 1))
            expected.append(labels[min(j, len(labels) - 1)])
        assert phones.alignments[name].at(token_centres(tokens, stride)).tolist() == expected


def test_labels_change_exactly_at_their_start(tmp_path):
    # Every frame a label of its own: with stride 160 token t is centred where label t starts.
    (tmp_path / "labels.txt").write_text("a " + " ".join(map(str, range(3000))) + "\n")
    alignment = read_phones(tmp_path / "labels.txt").alignments["a"]
    assert alignment.at(token_centres(3000, 160)).tolist() == list(range(3000))
    assert alignment.at(token_centres(1000, 480)).tolist() == list(range(1, 3000, 3))


@pytest.mark.parametrize("stride", [160, 320, 480])
def test_textgrids_give_the_same_labels(make_corpus, write_textgrid, tmp_path, stride):
    corpus = make_corpus()
    names = ("", "AA1", "B", "S")  # the text file's SIL, AA, B, S
    for name, labels in corpus.labels.items():
        changes = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
        intervals = [(a / 100, b / 100, names[labels[a]]) for a, b in zip(changes, changes[1:], strict=False)]
        write_textgrid(tmp_path / "grids" / name[:3] / f"{name}.TextGrid", intervals)
    (corpus.phones.with_name("phones.txt")).write_text("SIL 0\nAA 1\nB 2\nS 3\n")
    text, grids = read_phones(corpus.phones), read_phones(tmp_path / "grids")
    assert text.names == ["SIL", "AA", "B", "S"] and grids.names == ["AA", "B", "S", "SIL"]
    for name, samples in corpus.samples.items():
        centres = token_centres(num_tokens(samples, stride), stride)
        ours = [grids.names[label] for label in grids.alignments[name].at(centres)]
        assert ours == [text.names[label] for label in text.alignments[name].at(centres)]


def test_textgrid_times_are_not_rounded(write_textgrid, tmp_path):
    write_textgrid(tmp_path / "a.TextGrid", [(0, 0.0399, "A"), (0.0399, 0.0401, "B"), (0.0401, 0.1, "C")], "7 - phones")
    alignment = read_phones(tmp_path).alignments["a"]
    names = read_phones(tmp_path).names
    assert [names[label] for label in alignment.at(token_centres(6, 160))] == ["A", "A", "A", "A", "B", "C"]


def test_gaps_of_a_textgrid_are_silence(write_textgrid, tmp_path):
    write_textgrid(tmp_path / "a.TextGrid", [(0.02, 0.04, "A"), (0.06, 0.08, "B")])
    phones = read_phones(tmp_path)
    labels = [phones.names[label] for label in phones.alignments["a"].at(token_centres(8, 160))]
    assert labels == ["SIL", "SIL", "A", "A", "SIL", "SIL", "B", "B"]


@pytest.mark.parametrize(
    "label, name",
    [("", "SIL"), ("sil", "SIL"), ("sp", "SIL"), ("spn", "SIL"), ("SIL", "SIL"), ("AA1", "AA"), ("ER0", "ER")]
    + [("B", "B"), ("a1", "a1"), ("ʌ", "ʌ"), ("S2S", "S2S")],
)
def test_phone_names(label, name):
    assert phone_name(label) == name


@pytest.mark.parametrize("table", ["SIL 0\nAA 1\nB 2\n", "0 SIL\n1 AA\n2 B\n"])
def test_phones_txt_names_the_classes_either_way_round(tmp_path, table):
    (tmp_path / "phones.txt").write_text(table)
    (tmp_path / "labels.txt").write_text("a 0 0 1\n")
    assert read_phones(tmp_path / "labels.txt").names == ["SIL", "AA", "B"]


@pytest.mark.parametrize(
    "line, table, message",
    [
        ("a 0 1 2", "SIL 0\nAA 1\n", r"labels.txt, a: label 2 \(counted from 0\) is '2': expected 0 to 1"),
        ("a 0 -1", None, r"labels.txt, a: label 1 .* is '-1': expected whole numbers from 0"),
        ("a 0 AA", None, r"labels.txt, a: label 1 .* is 'AA'"),
        ("a 0 99999999999999999999", None, r"labels.txt, a: label 1"),
        ("a", None, r"line 1: a has no labels"),
        ("a 0\na 1", None, r"line 2: a is there twice"),
        ("", None, r"labels.txt holds no labels"),
        ("a 0", "SIL zero\n", r"phones.txt: expected a phone's name and its number"),
        ("a 0", "A 0\nB 0\n", r"phones.txt: expected a phone's name and its number"),
    ],
)
def test_bad_text(tmp_path, line, table, message):
    (tmp_path / "labels.txt").write_text(line + "\n")
    if table:
        (tmp_path / "phones.txt").write_text(table)
    with pytest.raises(SaatError, match=message):
        read_phones(tmp_path / "labels.txt")


def test_bad_folders(tmp_path):
    with pytest.raises(SaatError, match="phones is not set"):
        read_phones(None)
    with pytest.raises(SaatError, match="no such file or folder: .*nowhere"):
        read_phones(tmp_path / "nowhere")
    with pytest.raises(SaatError, match="no TextGrid below"):
        read_phones(tmp_path)


def test_bad_textgrids_are_named(write_textgrid, tmp_path):
    write_textgrid(tmp_path / "good.TextGrid", [(0, 1, "A")])
    write_textgrid(tmp_path / "other.TextGrid", [(0, 1, "A")], tier="syllables")
    (tmp_path / "empty.TextGrid").write_text("")
    (tmp_path / "cut.TextGrid").write_text((tmp_path / "good.TextGrid").read_text()[:-40])
    phones = read_phones(tmp_path)
    assert list(phones.alignments) == ["good"]
    cut, empty, other = phones.broken
    assert "cut.TextGrid: cannot be read" in cut and "empty.TextGrid: cannot be read" in empty
    assert "other.TextGrid: expected one tier named phones, has words, syllables" in other
