"""Audio files in: found, decoded, resampled to 16 kHz, mixed down to mono."""

import os
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor

from saat.errors import SaatError
from saat.upstream.config import SAMPLE_RATE

AUDIO_ENDINGS = {".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}
INEXACT_SEEK = {"MP3", "OGG"}  # libsndfile may land beside the sample asked for, or lack the bits from before it


class AudioError(SaatError):
    """One audio file cannot be used; the message names it and says why."""


def find_audio(folder: str | Path) -> list[Path]:
    """Every audio file below a folder, sorted by path; linked folders are followed, each folder is entered once.

    Errors: SaatError when the folder is missing or holds no audio.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise SaatError(f"no such folder: {folder}; name an existing folder of audio")
    # A link back up leads to what is no part of this corpus.
    found, entered = [], set(map(str, Path(os.path.realpath(folder)).parents))
    # Not rglob, which follows links from Python 3.13 on only, and into a loop where they make one.
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()  # of two ways to a folder, the same one is taken everywhere
        paths = (Path(where, name) for name in files)
        found += [path for path in paths if path.suffix.lower() in AUDIO_ENDINGS and path.is_file()]
    if not found:
        endings = " ".join(sorted(AUDIO_ENDINGS))
        raise SaatError(f"no audio below {folder}: looked for files ending in {endings}")
    return sorted(found)


def audio_length(path: str | Path) -> int:
    """Samples the file gives once it is at 16 kHz, from its header alone. Errors: AudioError."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read as audio: {error}") from error
    if info.frames <= 0:
        raise AudioError(f"{path}: has no samples")
    return -(-info.frames * SAMPLE_RATE // info.samplerate)


def read_audio(path: str | Path, start: int = 0, samples: int | None = None) -> Tensor:
    """(samples,) float32, 16 kHz, mono.

    Args:
        path: a file soundfile can decode, at any rate, with any number of channels.
        start, samples: a part, in samples at 16 kHz; of other rates, mp3 and ogg the whole is decoded first.

    Errors: AudioError for a missing, broken or empty file, or one with NaN or infinite samples.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            part = rate == SAMPLE_RATE and file.format not in INEXACT_SEEK
            if part and start:
                file.seek(start)
            data = file.read(samples if part and samples is not None else -1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read as audio: {error}") from error
    if len(data) == 0:
        raise AudioError(f"{path}: has no samples")
    if not np.isfinite(data).all():
        raise AudioError(f"{path}: has NaN or infinite samples")
    wav = torch.from_numpy(data).mean(dim=1)
    if rate != SAMPLE_RATE:
        wav = AF.resample(wav, rate, SAMPLE_RATE)
    if not part:
        wav = wav[start : None if samples is None else start + samples]
    return wav
