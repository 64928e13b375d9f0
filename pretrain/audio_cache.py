"""Decoded audio on disk, for corpora that are slow to decode: other rates, mp3, ogg.

Only audio is kept, not features: a crop's features depend on the crop (its level, its mean and variance), so what
could be kept of an utterance would not be what the model sees.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saat.cache import cache_folder
from saat.pretrain.distributed import say
from saat.upstream.audio import AudioError, read_audio

FREE = 2 * 10**9  # bytes that stay free on the disk
STALE = 24 * 3600  # seconds after which an unfinished file is nobody's


class AudioCache:
    """Utterances at 16 kHz as memory-mapped arrays below the cache folder, each written by whoever needs it first.

    The same samples, bit for bit, as without it: 16-bit integers where these hold them, else float32.

    Args:
        samples: (N,), of the corpus. As many utterances are kept, from its first, as fit in the space at 4 bytes a
            sample, so that many processes need not agree.
        gigabytes: the space, in 10^9 bytes.
    """

    def __init__(self, samples: Tensor, gigabytes: float):
        self.folder = cache_folder() / "audio"
        sizes = samples.cumsum(0) * 4
        self.kept = int((sizes <= gigabytes * 1e9).sum())
        self.off = torch.zeros(1, dtype=torch.bool).share_memory_()  # seen by every worker: said once
        for left_over in self.folder.glob("*/*.part"):  # of a process that was killed
            try:
                if time.time() - left_over.stat().st_mtime > STALE:
                    left_over.unlink(missing_ok=True)
            except OSError:
                continue  # another process was faster
        most = int(sizes[self.kept - 1]) / 1e9 if self.kept else 0.0
        say(
            f"decoded audio of {self.kept} of {len(samples)} utterances is kept in {self.folder}: {most:.1f} GB at "
            "most for this corpus; the folder may be removed at any time"
        )

    def keeps(self, utterance: int) -> bool:
        """Whether there is room for this utterance of the corpus."""
        return utterance < self.kept

    def read(self, path: str, start: int, samples: int) -> Tensor:
        """As `read_audio`. Errors: AudioError."""
        try:
            place = self._place(path)
        except OSError as error:
            raise AudioError(f"{path}: cannot be read as audio: {error}") from error
        try:
            data = np.load(place, mmap_mode="r")[start : start + samples]
            if data.dtype == np.int16:
                return torch.from_numpy(data.astype(np.float32)) / 32768
            return torch.from_numpy(np.array(data, dtype=np.float32))
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or damaged: it is made anew
        wav = read_audio(path)
        if not self.off:
            self._write(place, wav)
        return wav[start : start + samples]

    def _place(self, path: str) -> Path:
        stat = os.stat(path)
        key = hashlib.sha256(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.npy"

    def _write(self, place: Path, wav: Tensor) -> None:
        """Beside its place, then renamed. Without room, this run goes on without keeping more."""
        integers = (wav * 32768).round().clamp(-32768, 32767).to(torch.int16)
        data = (integers if torch.equal(integers.float() / 32768, wav) else wav).numpy()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place.parent).free < FREE + data.nbytes:
                raise OSError(f"less than {FREE / 1e9:.0f} GB would stay free on its disk")
            handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, data)
                os.replace(temporary, place)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            if not self.off:
                self.off.fill_(True)
                print(f"no more decoded audio is kept in {self.folder}: {error}", file=sys.stderr)
