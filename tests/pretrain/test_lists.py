"""Corpora given as lists: S3PRL's length tables and plain text."""

import pytest
import soundfile

from saat.errors import SaatError
from saat.pretrain.manifest import load_corpus

from .conftest import speech_like, write_corpus

TOKEN = 480


@pytest.fixture
def folder(tmp_path):
    return write_corpus(tmp_path / "LibriSpeech" / "train", 4)


def entries(folder) -> list[str]:
    """Not in the order a folder would give."""
    return [path.relative_to(folder.parent).as_posix() for path in sorted(folder.rglob("*.flac"))[::-1]]


def write_csv(file, names, header=",file_path,length,label"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *(f"{i},{name},123,," for i, name in enumerate(names))]) + "\n")
    return file


@pytest.mark.parametrize("place", ["len_for_bucket/train.csv", "train.csv", "train/deep/er.csv", "train.txt"])
def test_a_list_is_its_files_with_the_lengths_of_their_headers(folder, place):
    file = folder.parent / place
    write_csv(file, entries(folder))
    if file.suffix == ".txt":
        file.write_text("\n".join(["", *entries(folder), entries(folder)[0], ""]))
    corpus, whole = load_corpus([file], TOKEN), load_corpus([folder], TOKEN)
    assert corpus.names == entries(folder) and sorted(corpus.paths) == whole.paths
    assert corpus.samples.tolist() == whole.samples.tolist()[::-1]
    assert len(load_corpus([file, folder], TOKEN).paths) == 4


def test_root_and_absolute_paths(folder, tmp_path):
    file = write_csv(tmp_path / "elsewhere" / "x.csv", entries(folder)[1:])
    with pytest.raises(SaatError, match=r"x.csv, line 2: 'train/.*' lies neither below .*datarc.root=FOLDER"):
        load_corpus([file], TOKEN)
    with pytest.raises(SaatError, match=r"x.csv, line 2: no file .*does datarc.root fit"):
        load_corpus([file], TOKEN, root=folder)
    assert len(load_corpus([file], TOKEN, root=folder.parent).paths) == 3
    absolute = tmp_path / "elsewhere" / "x.txt"
    absolute.write_text("\n".join(str(folder.parent / name) for name in entries(folder)))
    assert len(load_corpus([absolute], TOKEN).paths) == 4


def test_missing_and_broken_files_are_named_with_their_line(folder, capsys):
    names = entries(folder)
    (folder / "bad.flac").write_bytes(b"x")
    file = write_csv(folder.parent / "a.csv", [names[0], "train/gone.flac", names[1], "train/bad.flac"])
    assert len(load_corpus([file], TOKEN).paths) == 2
    said = capsys.readouterr().err
    assert "skipped 2 of 4" in said and f"({file}, line 3)" in said and f"({file}, line 5)" in said
    soundfile.write(folder / "bad.flac", speech_like(0.5, 0), 16000)
    assert len(load_corpus([file], TOKEN).paths) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b",path,length\n0,a.flac,3\n", "line 1: no column 'file_path', but: , path, length"),
        (b"", "line 1: no column 'file_path'"),
        (b",file_path,length,label\n", "lists no audio file"),
        (b",file_path,length,label\n0,a.flac,3,\n1,,3,\n", "line 3: nothing in the column 'file_path'"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(SaatError, match=rf"a\.csv.*{message}"):
        load_corpus([tmp_path / "a.csv"], TOKEN)


def test_no_list(tmp_path):
    with pytest.raises(SaatError, match="a.csv cannot be read as a table: .*No such file"):
        load_corpus([tmp_path / "a.csv"], TOKEN)


def test_s3prls_own_table(librispeech_small):
    corpus = load_corpus([librispeech_small / "len_for_bucket" / "test-other.csv"], TOKEN)
    assert len(corpus.paths) == 100 and corpus.names[0] == "test-other/3080/5032/3080-5032-0009.flac"
    assert corpus.samples[:2].tolist() == [364000, 344480]


def test_from_the_command_line(run, corpus, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, sorted(corpus.rglob("*.flac"))[:5])))
    path = run(tmp_path / "exp", "--corpus", tmp_path / "a.txt", o="config.runner.total_steps=1")
    assert path.is_file()
    with pytest.raises(SaatError, match="lies neither below"):
        (tmp_path / "b.csv").write_text(",file_path,length,label\n0,x.flac,3,\n")
        run(tmp_path / "other", "--corpus", tmp_path / "b.csv", o="config.runner.total_steps=1")
