"""What S3PRL 0.4.18 needs and newer libraries no longer have. Nothing else in the project mentions versions.

Each name is supplied only where it is missing, so on an older stack this module changes nothing.
"""

import argparse
import contextlib
import importlib
import sys
import types

import torch


def _gone(what: str):
    """A stand-in that lets S3PRL import; the rare S3PRL task that really needs it gets this error."""

    def missing(*args, **kwargs):
        raise RuntimeError(f"{what} does not exist in the installed version; use an older one for this S3PRL task")

    return missing


def _module_exists(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _load(uri, frame_offset: int = 0, num_frames: int = -1, **kwargs):
    """`torchaudio.load` as it was: (channels, samples) float32, sample rate."""
    import soundfile

    samples, rate = soundfile.read(str(uri), num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def _apply_effects_file(path, effects: list[list[str]], **kwargs):
    """What s3prl/downstream/speech_commands/dataset.py asks of sox: mono, a sample rate, a gain in dB."""
    import torchaudio

    wav, rate = _load(path)
    for name, value in effects:
        if name == "channels" and value == "1":
            wav = wav.mean(dim=0, keepdim=True)
        elif name == "rate":
            wav, rate = torchaudio.functional.resample(wav, rate, int(value)), int(value)
        elif name == "gain":
            wav = (wav * 10 ** (float(value) / 20)).clamp(-1, 1)
        else:
            _gone(f"torchaudio.sox_effects.apply_effects_file with the effect {name} {value}")()
    return wav, rate


def apply() -> None:
    """Supply the missing names. Must run before anything imports `s3prl.hub`."""
    import huggingface_hub
    import torchaudio

    # s3prl/downstream/*/dataset.py load audio by it; since torchaudio 2.9 it needs torchcodec, which few have.
    if not hasattr(torchaudio, "set_audio_backend") and not _module_exists("torchcodec"):
        torchaudio.load = _load

    # s3prl/upstream/byol_s/byol_a/common.py and s3prl/run_downstream.py call it; a no-op since torchaudio 2.1.
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None

    # s3prl/upstream/mos_prediction/expert.py imports apply_effects_tensor (torchaudio < 2.9).
    if not _module_exists("torchaudio.sox_effects"):
        sox = types.ModuleType("torchaudio.sox_effects")
        sox.apply_effects_tensor = _gone("torchaudio.sox_effects.apply_effects_tensor")
        sox.apply_effects_file = _apply_effects_file
        sys.modules["torchaudio.sox_effects"] = torchaudio.sox_effects = sox

    # s3prl/downstream/runner.py and s3prl/run_downstream.py import them (huggingface_hub < 1); only pushing uses them.
    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, type(name, (), {"__init__": _gone(f"huggingface_hub.{name}")}))

    # s3prl/downstream/runner.py saves its argparse.Namespace and reads it back by torch.load, whose default is
    # weights_only=True since torch 2.6. A Namespace is a plain container: allowing it executes nothing. So does
    # s3prl/pretrain/runner.py, whose optimizers keep a schedule, of a module that its script finds as `optimizers`.
    torch.serialization.add_safe_globals([argparse.Namespace])
    with contextlib.suppress(ImportError):  # an S3PRL without its pre-training
        from s3prl.optimizers import WarmupLinearSchedule

        names = [f"{module}.WarmupLinearSchedule" for module in ("optimizers", "s3prl.optimizers")]
        torch.serialization.add_safe_globals([(WarmupLinearSchedule, name) for name in names])
