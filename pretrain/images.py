"""Images for TensorBoard: spectrograms, and the attention maps of one utterance over the steps of a run."""

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saat.upstream.attention import variant
from saat.upstream.encoder import AudioAlbert

SIDE = 96  # pixels of a map, at most
GAP = 2


def coloured(values: Tensor) -> np.ndarray:
    """(height, width) to (3, height, width) uint8, the smallest value dark, the largest bright."""
    x = values.detach().float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
    return matplotlib.colormaps["viridis"](x.numpy(), bytes=True)[..., :3].transpose(2, 0, 1)


def spectrogram_image(spectrogram: Tensor) -> np.ndarray:
    """(frames, bands) to (3, bands, frames) uint8, low bands below."""
    return coloured(spectrogram.T.flip(0))


@torch.no_grad()
def attention_maps(encoder: AudioAlbert, features: Tensor) -> Tensor:
    """`weights()` of every layer on an utterance; where they do not depend on the input, once for all layers.

    Args:
        encoder: in eval.
        features: (T, D), at most L tokens.

    Returns:
        (layers, A, T, T); where they do not depend on the input (sets of weights, A, L, L), or T where there is no L.
    """
    attention = [layer.attention for layer in encoder.layers()]
    if not variant(encoder.config.upstream).input_dependent:
        size = attention[0].max_length or len(features)
        own = attention[:1] if attention[0] is attention[-1] else attention
        return torch.cat([each.weights(features.new_zeros(1, size, 1), torch.tensor([size])) for each in own])
    lengths = torch.tensor([len(features)])
    states = encoder(features[None], lengths)
    return torch.cat([each.weights(state, lengths) for each, state in zip(attention, states, strict=False)])


def maps_image(maps: Tensor) -> np.ndarray:
    """(layers, A, T, T) to (3, height, width) uint8: a row a layer, a column a head; in a map queries down, keys right.

    Every map is scaled to its own largest value; in a long one a pixel is the largest value of a patch.
    """
    small = F.adaptive_max_pool2d(maps.float().cpu(), min(SIDE, maps.shape[-1]))
    small = small / small.amax((-1, -2), keepdim=True).clamp_min(1e-12)
    tiles = F.pad(small, (0, GAP, 0, GAP), value=1.0)  # (layers, A, side, side)
    return coloured(tiles.permute(0, 2, 1, 3).flatten(2).flatten(0, 1))
