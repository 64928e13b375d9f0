"""Hub entries, four an upstream, named as S3PRL names its own: `saat_ours`, `saat_ours_local`, `saat_ours_url`,
and `saat_ours_untrained`, the control with random weights."""

import hashlib
import re
from functools import partial
from pathlib import Path

import torch

from saat.errors import SaatError
from saat.upstream.attention import REGISTRY
from saat.upstream.expert import UpstreamExpert


def _build(upstream: str, ckpt=None, model_config=None, refresh=False, **kwargs) -> UpstreamExpert:
    """The upstream with the weights of a checkpoint. `refresh` is S3PRL's, and has nothing to do here."""
    return UpstreamExpert(upstream, ckpt=ckpt, model_config=model_config, **kwargs)


def _from_url(upstream: str, ckpt, model_config=None, refresh=False, **kwargs) -> UpstreamExpert:
    """The upstream with a checkpoint from `URL#sha256=HEX`; downloaded once, checked by its hash."""
    return UpstreamExpert(upstream, ckpt=str(download(ckpt, refresh)), model_config=model_config, **kwargs)


def _untrained(upstream: str, ckpt=None, model_config=None, refresh=False, seed=0, **kwargs) -> UpstreamExpert:
    """Random weights in the shape of a checkpoint (ckpt) or of a config (model_config)."""
    return UpstreamExpert(upstream, ckpt=ckpt, model_config=model_config, untrained=True, seed=seed, **kwargs)


def download(url: str, refresh: bool = False) -> Path:
    """The local copy of `URL#sha256=HEX` in torch.hub's folder.

    Errors: SaatError for another scheme than http(s), a missing hash, a failed download or a wrong hash.
    """
    match = re.fullmatch(r"(https?://[^#]+)#sha256=([0-9a-fA-F]{64})", str(url))
    if match is None:
        raise SaatError(f"{url}: expected an http(s) address with its hash, https://…/states-N.ckpt#sha256=<64 hex>")
    address, digest = match[1], match[2].lower()
    folder = Path(torch.hub.get_dir()) / "saat"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.ckpt"
    if path.is_file() and not refresh and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    try:
        torch.hub.download_url_to_file(address, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise SaatError(f"cannot download {address}: {error}") from error
    return path


def _entries() -> dict:
    kinds = {"": _build, "_local": _build, "_url": _from_url, "_untrained": _untrained}
    entries = {}
    for name in REGISTRY:
        for ending, build in kinds.items():
            if ending == "_untrained" and REGISTRY[name].attention is None:
                continue
            entry = partial(build, name)
            entry.__name__ = name + ending
            entry.__doc__ = f"{REGISTRY[name].paper_row}: {build.__doc__}"
            entries[name + ending] = entry
    return entries


globals().update(_entries())
__all__ = sorted(_entries())
