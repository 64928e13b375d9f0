"""Hub entries, four an upstream, named as S3PRL names its own: `saat_ours`, `saat_ours_local`, `saat_ours_url`,
and `saat_ours_untrained`, the control with random weights. `saat_ours` takes what the store has of that name, and
`saat_ours.TAG` one of its tags."""

from functools import partial

from saat.errors import SaatError
from saat.sharing.remote import fetch
from saat.sharing.store import store_folder, tags
from saat.upstream.attention import REGISTRY
from saat.upstream.expert import UpstreamExpert


def _build(upstream: str, ckpt=None, model_config=None, refresh=False, **kwargs) -> UpstreamExpert:
    """The upstream with the weights of a checkpoint (ckpt), or else of the store's default, or of its `tag`."""
    return UpstreamExpert(upstream, ckpt=ckpt, model_config=model_config, **kwargs)


def _from_file(upstream: str, ckpt=None, model_config=None, refresh=False, **kwargs) -> UpstreamExpert:
    """The upstream with the weights of a checkpoint: states-N.ckpt, model.safetensors, or a published folder."""
    if ckpt is None:
        raise SaatError(f"{upstream}_local: no checkpoint: pass -k FILE (path_or_url=FILE in Python)")
    return UpstreamExpert(upstream, ckpt=ckpt, model_config=model_config, **kwargs)


def _from_url(upstream: str, ckpt=None, model_config=None, refresh=False, **kwargs) -> UpstreamExpert:
    """The upstream with the checkpoint at `https://…#sha256=HEX` or `hf://owner/repo[@revision]`; downloaded once."""
    return UpstreamExpert(upstream, ckpt=str(fetch(ckpt, refresh)), model_config=model_config, **kwargs)


def _untrained(upstream: str, ckpt=None, model_config=None, refresh=False, seed=0, **kwargs) -> UpstreamExpert:
    """Random weights in the shape of a checkpoint (ckpt) or of a config (model_config)."""
    return UpstreamExpert(upstream, ckpt=ckpt, model_config=model_config, untrained=True, seed=seed, **kwargs)


def _entry(name: str, upstream: str, build, **fixed):
    entry = partial(build, upstream, **fixed)
    entry.__name__ = name
    entry.__doc__ = f"{REGISTRY[upstream].paper_row}: {build.__doc__}"
    return entry


def _entries() -> dict:
    kinds = {"": _build, "_local": _from_file, "_url": _from_url, "_untrained": _untrained}
    entries = {}
    for name in REGISTRY:
        for ending, build in kinds.items():
            if REGISTRY[name].attention is None:
                if ending == "_untrained":
                    continue
                build = _build if ending == "_local" else build  # saat_mel needs no checkpoint
            entries[name + ending] = _entry(name + ending, name, build)
    return entries


def store_entries() -> dict:
    """`saat_ours.TAG` for each tag in the store now. (S3PRL and ESPnet look names up in a list.)"""
    store = store_folder()
    names = [(name, tag) for name in REGISTRY for tag in tags(store, name)]
    return {f"{name}.{tag}": _entry(f"{name}.{tag}", name, _build, tag=tag) for name, tag in names}


globals().update(_entries())
__all__ = sorted(_entries())
