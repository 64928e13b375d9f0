"""The registry of attention variants. A new variant is one class, one config dataclass, one line here, one YAML."""

from dataclasses import dataclass

from saat.errors import SaatError, did_you_mean
from saat.upstream.attention.base import Attention
from saat.upstream.attention.ours import Ours, OursConfig
from saat.upstream.attention.softmax import QK, QKConfig

__all__ = ["PREFIX", "REGISTRY", "Attention", "Variant", "variant"]

PREFIX = "saat_"


@dataclass(frozen=True)
class Variant:
    """One upstream: its name in S3PRL, its row in the paper's tables, its attention (none for the Mel baseline)."""

    name: str
    paper_row: str
    attention: type[Attention] | None = None
    config: type | None = None


REGISTRY = {
    entry.name: entry
    for entry in (
        Variant("saat_mel", "Baseline (Mel)"),
        Variant("saat_qk", "Baseline (QK)", QK, QKConfig),
        Variant("saat_ours", "Ours", Ours, OursConfig),
    )
}


def variant(name: str) -> Variant:
    """The variant of an upstream name; SaatError names the nearest known one."""
    if name not in REGISTRY:
        raise SaatError(f"unknown upstream '{name}': {did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
