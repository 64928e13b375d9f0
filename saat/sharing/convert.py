"""Checkpoints of S3PRL's Audio ALBERT, Mockingjay and TERA as `saat_qk`, and `saat_qk` as one of theirs."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from saat.errors import SaatError
from saat.files import free
from saat.sharing import published, store
from saat.upstream import checkpoint
from saat.upstream.config import SAMPLE_RATE, ModelConfig, model_config
from saat.upstream.s3prl_weights import from_s3prl, to_s3prl

SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps",
)  # fmt: skip
AUDIO = ("target_level", "win_ms", "hop_ms", "n_freq", "n_mels")


def load_s3prl(path: Path) -> dict[str, Any]:
    """The states of a checkpoint of S3PRL's pre-training, whatever else was pickled into it; nothing of it is run.

    Errors: SaatError when it is damaged or something else.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        inert = [(type("Inert", (checkpoint.Inert,), {}), name) for name in unknown]
        with checkpoint.allowing([*inert, argparse.Namespace]):
            states = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError, OSError, KeyError, AttributeError) as error:
        problem = checkpoint.unpickling_problem(error)
        raise SaatError(f"cannot read {path} as a checkpoint of S3PRL: {problem}") from error
    if not isinstance(states, dict) or not isinstance(states.get("Transformer"), dict):
        raise SaatError(f"{path} is not a checkpoint of S3PRL's pre-training: it lacks Transformer")
    return states


def import_s3prl(path: str | Path, out: str | Path, force: bool = False) -> Path:
    """Write a `saat_qk` checkpoint with the hidden states of an S3PRL Audio ALBERT, Mockingjay or TERA.

    Equal for utterances up to `task.sequence_length` frames: S3PRL cuts longer ones into pieces, saat_qk does not.
    The prediction head stays behind, so pre-training cannot go on from it.

    Args:
        path: S3PRL's checkpoint.
        out: the file to write.
        force: overwrite it.

    Errors: SaatError when S3PRL's model does something ours cannot (it says what), or `out` is there.
    """
    path, out = Path(path).expanduser(), free(out, force)
    if not path.is_file():
        raise SaatError(f"no checkpoint at {path}")
    states = load_s3prl(path)
    theirs = next(
        (states[key] for key in ("Config", "Upstream_Config") if "transformer" in (states.get(key) or {})), None
    )
    if not isinstance(theirs, dict):
        raise SaatError(f"{path} is not a checkpoint of S3PRL's pre-training: it has no model config")
    config = _our_config(theirs, str(path))
    share = config.transformer.share_layers
    weights = from_s3prl(states["Transformer"], config.transformer.num_hidden_layers, share)
    step = states.get("Step", states.get("Global_step", 0))
    new = {
        "Transformer": weights,
        "Upstream_Config": config.to_dict(),
        "Step": step if isinstance(step, int) else 0,
        "Config": {key: theirs[key] for key in ("transformer", "audio", "task") if key in theirs},
        "Made_From": f"S3PRL checkpoint {path.name}, SHA-256 {published.file_sha256(path)}",
    }
    checkpoint.check_model(new, str(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, new)
    return out


def _our_config(theirs: dict[str, Any], where: str) -> ModelConfig:
    transformer, audio, task = (theirs.get(key) or {} for key in ("transformer", "audio", "task"))
    if "input" not in audio:
        kind = "Kaldi features" if "kaldi" in audio else "features that were extracted beforehand"
        raise SaatError(f"{where} was trained on {kind}: only S3PRL's own log-mel can be computed here")
    features = audio["input"]
    wanted = {
        "feat_type": "mel",
        "log": True,
        "hidden_act": "gelu",
        "pre_layer_norm": False,
        "sample_rate": SAMPLE_RATE,
    }
    for key, value in wanted.items():
        found = {**audio, **features, **transformer}.get(key, value)
        if found != value:
            raise SaatError(f"{where} has {key}: {found}; saat_qk can only be {value}")
    try:
        ours = {
            "audio": {key: audio[key] for key in AUDIO if key in audio}
            | {"stack": 1, "delta": int(features.get("delta", 0)), "cmvn": bool(features.get("cmvn", False))},
            "transformer": {key: transformer[key] for key in SIZES}
            | {"share_layers": bool(transformer.get("share_layer", False))},
            "task": {"sequence_length": int(task.get("sequence_length") or 1500)},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise SaatError(f"{where}: its model config lacks or mistypes {error}") from error
    return model_config("saat_qk", (ours, f"the config in {where}"))


def export_s3prl(source: str | Path, out: str | Path, force: bool = False) -> Path:
    """Write a `saat_qk` checkpoint as one that S3PRL's `audio_albert_local` loads, with equal hidden states.

    Args:
        source: a `states-N.ckpt`, or a published checkpoint (its name or folder).
        out: the file to write.
        force: overwrite it.

    Errors: SaatError for another variant, or stacked frames, which S3PRL has not.
    """
    path = Path(source).expanduser()
    path, out = path if path.is_file() else store.source_folder(str(source)), free(out, force)
    states = checkpoint.load(path)
    config = checkpoint.check_model(states, str(path))
    if config.upstream != "saat_qk":
        raise SaatError(f"{path} is a {config.upstream}: S3PRL's Audio ALBERT has the attention of saat_qk only")
    if config.audio.stack != 1:
        raise SaatError(
            f"{path} stacks {config.audio.stack} frames a token, which S3PRL's Audio ALBERT does not: "
            'pre-train with -o "config.model.audio.stack=1"'
        )
    transformer, audio = config.transformer, config.audio
    features = {"feat_type": "mel", "channel": 0, "log": True, "delta": audio.delta, "cmvn": audio.cmvn}
    theirs = {
        "transformer": {key: getattr(transformer, key) for key in SIZES}
        | {"input_dim": -1, "hidden_act": "gelu", "share_layer": transformer.share_layers, "pre_layer_norm": False},
        "audio": {key: getattr(audio, key) for key in AUDIO} | {"n_mfcc": 13, "input": features, "target": features},
        "task": {"sequence_length": 0},  # S3PRL's word for: never cut an utterance
    }
    weights = to_s3prl(states["Transformer"], transformer.num_hidden_layers, transformer.share_layers)
    new = {"Transformer": weights, "Upstream_Config": theirs, "Config": {}, "Step": states.get("Step", 0)}
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, new)
    return out
