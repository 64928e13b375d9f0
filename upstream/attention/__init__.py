"""The registry of attention variants. A new variant is one class, one config dataclass, one line here, one YAML."""

from dataclasses import dataclass

from saat.upstream.attention.base import Attention
from saat.upstream.attention.fixed import FixedConfig, FixedWeights
from saat.upstream.attention.lsh import (
    QNFXBOX,
    XBOX,
    LSHConfig,
    SignALSH,
    SignALSHConfig,
    SimpleALSH,
    SimpleLSH,
)
from saat.upstream.attention.ours import Ours, OursConfig
from saat.upstream.attention.softmax import QK, Q, QConfig, QKConfig
from saat.upstream.attention.sparse import SparseConfig, SparseFixed, SparseStrided
from saat.upstream.attention.synthesizer import (
    DenseConfig,
    MultiDenseConfig,
    SynthesizerDense,
    SynthesizerMultiDense,
)

from saat.errors import SaatError, did_you_mean

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
        Variant("saat_q", "Baseline (Q)", Q, QConfig),
        Variant("saat_sparse_strided", "Sparse (strided)", SparseStrided, SparseConfig),
        Variant("saat_sparse_fixed", "Sparse (fixed)", SparseFixed, SparseConfig),
        Variant("saat_sign_alsh", "Sign-ALSH", SignALSH, SignALSHConfig),
        Variant("saat_xbox", "XBOX", XBOX, LSHConfig),
        Variant("saat_qnf_xbox", "XBOX (QNF)", QNFXBOX, LSHConfig),
        Variant("saat_simple_lsh", "Simple LSH", SimpleLSH, LSHConfig),
        Variant("saat_simple_alsh", "Simple ALSH", SimpleALSH, LSHConfig),
        Variant("saat_syn_dense", "SYN. (Dense)", SynthesizerDense, DenseConfig),
        Variant("saat_syn_mdense", "SYN. (Dense+M)", SynthesizerMultiDense, MultiDenseConfig),
        Variant("saat_syn_random", "SYN. (Random)", FixedWeights, FixedConfig),
        Variant("saat_ours", "Ours", Ours, OursConfig),
    )
}


def variant(name: str) -> Variant:
    """The variant of an upstream name; SaatError names the nearest known one."""
    if name not in REGISTRY:
        raise SaatError(f"unknown upstream '{name}': {did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
