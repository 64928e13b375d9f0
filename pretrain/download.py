"""LibriSpeech by the name of its parts: fetched, checked, unpacked, once."""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from torchaudio.datasets import librispeech
from tqdm import tqdm

from saat.cache import cache_folder
from saat.errors import SaatError, did_you_mean

FOLDER = librispeech.FOLDER_IN_ARCHIVE  # "LibriSpeech", in each archive and so here
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20


def archives() -> dict[str, tuple[str, str]]:
    """Address and SHA-256 of the archive of each part, from torchaudio's own table."""
    return {url.rsplit("/", 1)[1].removesuffix(".tar.gz"): (url, sha) for url, sha in librispeech._CHECKSUMS.items()}


def part_folders(parts: Iterable[str], folder: str | Path | None = None) -> list[Path]:
    """Where parts lie, or will: FOLDER/LibriSpeech/PART, by default in the user's cache folder.

    Errors: SaatError for an unknown part.
    """
    root = Path(folder).expanduser().resolve() if folder else cache_folder() / "corpora"
    for part in parts:
        if part not in archives():
            raise SaatError(f"--download: LibriSpeech has no part '{part}': {did_you_mean(part, archives())}")
    return [root / FOLDER / part for part in parts]


def download(places: Iterable[Path], progress: bool = True) -> None:
    """Fetches what is not there yet of `part_folders`. A download that was cut off goes on where it stopped.

    Errors: SaatError when the server cannot be reached, a checksum differs, an archive is not what it should be, or
    the folder cannot be written.
    """
    for place in places:
        url, sha256 = archives()[place.name]
        root = place.parent.parent
        archive = root / f"{place.name}.tar.gz.part"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{place.name}.lock"):  # of several processes one fetches, the others wait
                if place.is_dir():
                    continue
                _fetch(url, archive, progress)
                _check(url, archive, sha256)
                print(f"unpacking {place.name} in {root}", file=sys.stderr)
                _unpack(archive, root, place.name)
                archive.unlink()
        except OSError as error:
            raise SaatError(f"{place.name} cannot be put in {root}: {error}; choose another --download-dir") from error


def _fetch(url: str, archive: Path, progress: bool) -> None:
    """The whole archive to its file, after what that has already."""
    have = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.status != 206:  # the server begins at the beginning
                have = 0
            left = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(
                total=have + left or None,
                initial=have,
                desc=archive.name,
                unit="B",
                unit_scale=True,
                disable=not progress,
            )
            with archive.open("ab" if have else "wb") as file, bar:
                while block := answer.read(CHUNK):
                    file.write(block)
                    bar.update(len(block))
                    left -= len(block)
            if left > 0:
                raise SaatError(f"{url}: the connection ended {left} bytes early: the same command goes on from there")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing beyond what we have
            raise SaatError(f"{url}: the server says {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise SaatError(f"{url}: {error}: the same command goes on from there") from error


def _check(url: str, archive: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        archive.unlink()
        raise SaatError(f"{url}: its SHA-256 is {digest.hexdigest()}, not {sha256}: removed; try again")


def _unpack(archive: Path, root: Path, part: str) -> None:
    """Beside its place, then renamed: a part that is there is whole."""
    if not hasattr(tarfile, "data_filter"):
        raise SaatError("this Python cannot unpack archives safely: use 3.10.12, 3.11.4 or newer")
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f".{part}."))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter=_plain)
        unpacked = folder / FOLDER
        if not (unpacked / part).is_dir():
            raise SaatError(f"{archive}: no folder {FOLDER}/{part} in it")
        (root / FOLDER).mkdir(exist_ok=True)
        # The part itself last; the others are texts on the whole of LibriSpeech, the same in each archive.
        for entry in sorted(unpacked.iterdir(), key=lambda entry: entry.name == part):
            if not (root / FOLDER / entry.name).exists():
                os.replace(entry, root / FOLDER / entry.name)
    except tarfile.TarError as error:
        raise SaatError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Files and folders only, within the folder."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.FilterError(f"{member.name} is neither a file nor a folder")
    return tarfile.data_filter(member, folder)
