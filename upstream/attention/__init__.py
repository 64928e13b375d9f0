"""The registry of attention variants. A new variant is one class, one config dataclass, one line here, one YAML."""

from dataclasses import dataclass

from saat.errors import SaatError, did_you_mean
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

__all__ = ["REGISTRY", "Attention", "Variant", "variant"]

LSH_COST = "n H^2 + n^2 H + A n^2 d'"


@dataclass(frozen=True)
class Variant:
    """One upstream: its name in S3PRL, its row in the paper's tables, its attention (none for the Mel baseline)."""

    name: str
    paper_row: str
    attention: type[Attention] | None = None
    config: type | None = None
    complexity: str = "-"  # multiply-adds for the weights of one layer and utterance (SPEC section 5)
    input_dependent: bool = True


REGISTRY = {
    entry.name: entry
    for entry in (
        Variant("saat_mel", "Baseline (Mel)"),
        Variant("saat_qk", "Baseline (QK)", QK, QKConfig, "2 n H^2 + n^2 H"),
        Variant("saat_q", "Baseline (Q)", Q, QConfig, "n H^2 + n^2 H"),
        Variant("saat_sparse_strided", "Sparse (strided)", SparseStrided, SparseConfig, "n H^2 + n sqrt(n) H"),
        Variant("saat_sparse_fixed", "Sparse (fixed)", SparseFixed, SparseConfig, "n H^2 + n sqrt(n) H"),
        Variant("saat_sign_alsh", "Sign-ALSH", SignALSH, SignALSHConfig, LSH_COST),
        Variant("saat_xbox", "XBOX", XBOX, LSHConfig, LSH_COST),
        Variant("saat_qnf_xbox", "XBOX (QNF)", QNFXBOX, LSHConfig, LSH_COST),
        Variant("saat_simple_lsh", "Simple LSH", SimpleLSH, LSHConfig, LSH_COST),
        Variant("saat_simple_alsh", "Simple ALSH", SimpleALSH, LSHConfig, LSH_COST),
        Variant("saat_syn_dense", "SYN. (Dense)", SynthesizerDense, DenseConfig, "n H b + n^2 b"),
        Variant("saat_syn_mdense", "SYN. (Dense+M)", SynthesizerMultiDense, MultiDenseConfig, "n H b + A n^2 b"),
        Variant("saat_syn_random", "SYN. (Random)", FixedWeights, FixedConfig, "0", input_dependent=False),
        Variant("saat_ours", "Ours", Ours, OursConfig, "0", input_dependent=False),
    )
}


def variant(name: str) -> Variant:
    """The variant of an upstream name; SaatError names the nearest known one."""
    if name not in REGISTRY:
        raise SaatError(f"unknown upstream '{name}': {did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
