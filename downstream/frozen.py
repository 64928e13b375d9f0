"""A frozen upstream by name, and what decides its features: for the key under which they are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase

from saat.downstream.extraction import Extractor
from saat.errors import SaatError, did_you_mean
from saat.sharing.published import file_sha256, weights_file
from saat.upstream.attention import REGISTRY


@dataclass(frozen=True)
class FrozenUpstream:
    """An upstream of S3PRL's hub."""

    name: str  # as `-u`
    module: UpstreamBase
    ckpt: str | None  # what was given, or the store's
    sha256: str | None  # of that file; None where there is none
    identity: dict[str, Any]  # what decides the features


def load_upstream(name: str, ckpt: str | None, options: str | None = None) -> FrozenUpstream:
    """The upstream `-u name -k ckpt -g options` of S3PRL's runner.

    Errors: SaatError where there is no such upstream or checkpoint.
    """
    import saat

    saat.register()
    from s3prl import hub

    if name not in hub.options():
        raise SaatError(f"unknown upstream '{name}': {did_you_mean(name, hub.options())}")
    variant = next((v for v in REGISTRY if name == v or name.startswith((f"{v}_", f"{v}."))), None)
    ending = name[len(variant) :] if variant else None
    if variant and REGISTRY[variant].attention is not None and ckpt is None and (ending == "" or ending[0] == "."):
        from saat.sharing.store import find

        ckpt = str(find(variant, ending[1:] or None))
    if ckpt is None and name.endswith(("_local", "_url")) and not (variant and REGISTRY[variant].attention is None):
        raise SaatError(f"{name}: no checkpoint: pass -k")
    is_file = ckpt is not None and "://" not in ckpt
    if is_file and not Path(ckpt).expanduser().exists():
        if variant:
            raise SaatError(f"-k: no checkpoint at {ckpt}; pass a states-N.ckpt written by run_pretrain.py")
        is_file = False  # other upstreams take ids of downloads here, too
    ckpt = str(Path(ckpt).expanduser()) if is_file else ckpt
    if options is not None and not Path(options).expanduser().is_file():
        raise SaatError(f"-g: no file at {options}")
    given = {"ckpt": ckpt, "model_config": options and str(Path(options).expanduser())}
    module = getattr(hub, name)(**{key: value for key, value in given.items() if value is not None})
    sha256 = file_sha256(weights_file(Path(ckpt))) if is_file else None
    if variant and (REGISTRY[variant].attention is None or ending == "_untrained"):
        # Nothing but the shape and the features comes from the checkpoint; the seed is the entry's own.
        identity = {"upstream": f"{variant}{ending}".removesuffix("_local"), "config": module.model_config.to_dict()}
    else:
        identity = {"upstream": variant or name, "checkpoint": sha256 or ckpt}
    if options is not None:
        identity["options"] = Path(options).expanduser().read_text(encoding="utf-8")
    return FrozenUpstream(name, module, ckpt, sha256, identity)


@torch.no_grad()
def extractor_of(upstream: FrozenUpstream, layer: str, weighted_sum: bool, device: str) -> Extractor:
    """What extracts the hidden states asked for.

    Args:
        layer: `last`, `all`, or a number from 0, the input representation.
        weighted_sum: all of them are needed.

    Errors: SaatError for a layer that is not there.
    """
    if layer == "last" and not weighted_sum:
        return Extractor(upstream.module, device=device)
    first = Extractor(upstream.module, "hidden_states", device=device)
    count = getattr(first.featurizer, "layer_num", 1)
    if weighted_sum or layer == "all":
        layers = list(range(count))
    else:
        if not layer.isdecimal() or int(layer) >= count:
            raise SaatError(f"--layer: {upstream.name} has hidden states 0 to {count - 1}, no '{layer}'; or last, all")
        layers = [int(layer)]
    return Extractor(upstream.module, "hidden_states", layers, device)
