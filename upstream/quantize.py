"""Int8 on the CPU: linear layers with 8-bit weights and inputs, quantised anew for each call ("dynamically").

torch's own quantisation with oneDNN's kernels: without compilation it took half the time of torchao's (0.41 against
0.79 of float32, `saat_ours`, one thread). Features, attention and norms stay in float32.
"""

import torch
from torch import nn

from saat.errors import SaatError, did_you_mean
from saat.upstream.encoder import AudioAlbert

SCHEMES = ("int8",)
ENGINE = "onednn"


def quantised(encoder: AudioAlbert, scheme: str) -> AudioAlbert:
    """A copy of an encoder for inference on a CPU.

    Args:
        encoder: with its weights.
        scheme: `int8`.

    Errors: SaatError for an unknown scheme, or where this torch has no kernels for it.
    """
    if scheme not in SCHEMES:
        raise SaatError(f"quantize: unknown scheme '{scheme}': {did_you_mean(scheme, SCHEMES)}")
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    if ENGINE not in torch.backends.quantized.supported_engines:
        raise SaatError(f"quantize: this build of torch has no {ENGINE} kernels; leave quantize out")
    # The Synthesizers read their bottlenecks as plain tensors; these are too small to matter.
    kept = (".attention.squeeze", ".attention.expand")
    linear = (name for name, module in encoder.named_modules() if isinstance(module, nn.Linear))
    names = [name for name in linear if not name.endswith(kept)]
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = ENGINE  # weights are packed for the engine of the moment
        return quantize_dynamic(encoder.eval(), dict.fromkeys(names, per_channel_dynamic_qconfig))
    finally:
        torch.backends.quantized.engine = before
