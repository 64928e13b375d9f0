"""LibriSpeech's parts from a server of our own: checked, unpacked, gone on with, refused."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading

import pytest
from torchaudio.datasets import librispeech

from saat.errors import SaatError
from saat.pretrain import cli
from saat.pretrain.download import archives, download, part_folders

from .conftest import write_corpus


class Handler(http.server.BaseHTTPRequestHandler):
    """One archive, with ranges; `cut` ends the connection after so many bytes."""

    def do_GET(self):
        server = self.server
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if server.ranges else 0
        server.asked.append(begin)
        if begin >= len(server.data):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(server.data) - begin))
        self.end_headers()
        self.wfile.write(server.data[begin : server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a dev-clean of four utterances under the checksum table torchaudio has."""
    folder = write_corpus(tmp_path / "made" / "LibriSpeech" / "dev-clean", 4)
    (folder.parent / "SPEAKERS.TXT").write_text("speakers")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(folder.parent, "LibriSpeech")
    shutil.rmtree(tmp_path / "made")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.ranges, served.cut, served.asked = True, None, []

        def give(data: bytes, sha256: str | None = None) -> None:
            served.data = data
            url = f"http://127.0.0.1:{served.server_port}/dev-clean.tar.gz"
            monkeypatch.setattr(librispeech, "_CHECKSUMS", {url: sha256 or hashlib.sha256(data).hexdigest()})

        served.give = give
        give((tmp_path / "a.tar.gz").read_bytes())
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def fetch(folder):
    places = part_folders(["dev-clean"], folder)
    download(places, progress=False)
    return places


def test_torchaudios_table():
    assert set(archives()) == set(librispeech._DATA_SUBSETS)
    url, sha256 = archives()["train-clean-360"]
    assert url.startswith("http") and url.endswith("/train-clean-360.tar.gz") and len(sha256) == 64
    with pytest.raises(SaatError, match="no part 'dev-claen': did you mean 'dev-clean'"):
        part_folders(["dev-claen"])


def test_fetched_once_and_nothing_left_over(server, tmp_path):
    (place,) = fetch(tmp_path / "data")
    assert place == tmp_path / "data" / "LibriSpeech" / "dev-clean" and len(list(place.rglob("*.flac"))) == 4
    assert (place.parent / "SPEAKERS.TXT").read_text() == "speakers"
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"LibriSpeech", ".dev-clean.lock"}
    fetch(tmp_path / "data")
    assert server.asked == [0]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(SaatError, match="ended .* bytes early: the same command goes on"):
        fetch(tmp_path / "data")
    assert not (tmp_path / "data" / "LibriSpeech").exists()
    server.cut = None
    (place,) = fetch(tmp_path / "data")
    assert len(list(place.rglob("*.flac"))) == 4 and server.asked == [0, 1000 if ranges else 0]


def test_a_whole_archive_that_was_not_unpacked(server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev-clean.tar.gz.part").write_bytes(server.data)
    (place,) = fetch(tmp_path / "data")
    assert place.is_dir() and server.asked == [len(server.data)]


def test_wrong_checksum(server, tmp_path):
    server.give(server.data, "0" * 64)
    with pytest.raises(SaatError, match="its SHA-256 is .*, not 0000"):
        fetch(tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.flac")) and not list((tmp_path / "data").glob("*.part"))


def tar_of(*members: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        folder = tarfile.TarInfo("LibriSpeech/dev-clean")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        for member in (folder, *members):
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return data.getvalue()


def member(name: str, **values) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped.txt", size=3),
        member("LibriSpeech/dev-clean/../../../escaped.txt", size=3),
        member("LibriSpeech/dev-clean/link", type=tarfile.SYMTYPE, linkname="../SPEAKERS.TXT"),
        member("LibriSpeech/dev-clean/link", type=tarfile.LNKTYPE, linkname="LibriSpeech/dev-clean"),
        member("LibriSpeech/dev-clean/pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name,
)
def test_members_that_lead_elsewhere(server, tmp_path, bad):
    server.give(tar_of(bad))
    with pytest.raises(SaatError, match="cannot be unpacked"):
        fetch(tmp_path / "data")
    assert not (tmp_path / "data" / "LibriSpeech").exists() and not list(tmp_path.rglob("escaped.txt"))


def test_no_server_and_no_room(server, tmp_path):
    server.server_close()
    server.shutdown()
    with pytest.raises(SaatError, match="goes on from there"):
        fetch(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaatError, match="choose another --download-dir"):
        fetch(tmp_path / "file")


def test_pretraining_on_what_was_fetched(server, tmp_path, recipe):
    argv = ["-u", "saat_qk", "-p", str(tmp_path / "exp"), "-c", str(recipe), "-o", "config.runner.total_steps=1"]
    given = ["--download", "dev-clean", "--download-dir", str(tmp_path / "data")]
    path = cli.pretrain([*argv, *given], progress=False)
    assert path.is_file() and len(server.asked) == 1
    # The checkpoint knows where the corpus lies.
    argv = ["-e", str(path), "-o", "config.runner.total_steps=2"]
    assert cli.pretrain(argv, progress=False).name == "states-2.ckpt"
