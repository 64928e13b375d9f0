"""The protocol of every attention variant: `weights()`, the definition, and `forward()`, the speed."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.upstream.config import TransformerConfig

PRODUCTS_UP_TO = 1000  # keys


def key_mask(lengths: Tensor, size: int) -> Tensor:
    """(B, size), True at the tokens an utterance really has; on the device of `lengths`."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Attention(nn.Module):
    """Multi-head attention up to the context; the layer's output projection comes after it.

    Sub-classes give `prepare`, `weights` and `forward`. `lengths` (B,) are true token counts on the CPU, so that
    asking whether a batch has padding costs no synchronisation. Rows of padded queries are meaningless in `forward`
    and zero in `weights`.

    Args:
        transformer: the sizes.
        config: the variant's own options.
    """

    limited: bool = False  # has learned weights of a fixed size, so that `max_length` is set
    max_length: int | None = None  # tokens; None: any length. The encoder cuts longer utterances into windows.
    not_elsewhere: str | None = None  # why another runtime (ONNX) would give other hidden states; None: it would not

    def __init__(self, transformer: TransformerConfig, config: Any):
        super().__init__()
        self.config = config
        self.num_heads = transformer.num_attention_heads
        self.head_size = transformer.head_size
        self.dropout = transformer.attention_probs_dropout_prob
        self.value = nn.Linear(transformer.hidden_size, transformer.hidden_size)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, A, T, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def prepare(self, lengths: Tensor, size: int, like: Tensor, seeds: Tensor | None = None) -> Any:
        """What all layers share in one pass of the encoder: masks, normalised weights, random vectors.

        Args:
            lengths: (B,), tokens; size: T; like: gives the device.
            seeds: (B,), int64 on the CPU: what is random about an utterance in training is a function of its seed.
                Without them it comes from torch's own generator.
        """
        return None

    def weights(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The definition. hidden (B, T, H), lengths (B,) to (B, A, T, T); rows sum to 1 over the utterance's keys."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: Any = None) -> Tensor:
        """The context, weights @ value. hidden (B, T, H), lengths (B,) to (B, T, H)."""
        raise NotImplementedError

    def masked_softmax(self, scores: Tensor, lengths: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Softmax of (…, T, T) scores over each utterance's own keys, and of those only the `allowed` ones."""
        real = key_mask(lengths.to(scores.device), scores.shape[-1])  # (B, T)
        keys = real[:, None, None, :]
        scores = scores.masked_fill(~(keys if allowed is None else keys & allowed), float("-inf"))
        # Rows of padded queries may see no key at all: zero, not NaN.
        return scores.masked_fill(~real[:, None, :, None], 0.0).softmax(-1).masked_fill(~real[:, None, :, None], 0.0)


def padding_mask(lengths: Tensor, size: int, device: torch.device) -> Tensor | None:
    """(B, 1, 1, size) key mask, or None where no utterance is shorter than `size`."""
    if bool((lengths >= size).all()):
        return None
    return key_mask(lengths, size)[:, None, None, :].to(device)


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T) v by what is fastest: torch's fused attention, with one exception.

    In training in bfloat16 on a CPU (or under autocast to it) plain products take a third to half of the time, up to
    some 1000 keys; with more they gain nothing, and keep n m weights for the gradient.

    Args:
        q: (…, n, d); k: (…, m, d); v: (…, m, d); mask: bool, broadcast to (…, n, m), True where a query sees a key,
            each query at least one.
        dropout: of the weights. scale: 1 / sqrt d by default.
    """
    if not _products_are_faster(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.transpose(-1, -2)
    if mask is not None:
        # 0 or -inf, by way of bytes: torch converts and fills by booleans ten times more slowly.
        scores = scores + mask.view(torch.uint8).to(scores.dtype).log()
    return F.dropout(scores.softmax(-1), dropout) @ v


def _products_are_faster(*operands: Tensor) -> bool:
    if operands[0].device.type != "cpu" or not torch.is_grad_enabled() or operands[1].shape[-2] > PRODUCTS_UP_TO:
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not (autocast or operands[0].dtype == torch.bfloat16):
        return False
    return any(x.requires_grad for x in operands)
