"""The Audio ALBERT every variant shares (SPEC section 1): post-layer-norm layers, with one set of weights unless the
config says otherwise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saat.upstream.attention import variant
from saat.upstream.attention.base import Attention, key_mask
from saat.upstream.config import ModelConfig, TransformerConfig
from saat.upstream.dropout import Dropout
from saat.upstream.windows import Windows

WORTH_PACKING = 0.95  # of the tokens of a batch: with more of them real, leaving the others out gains little


def sinusoidal_positions(length: int, hidden_size: int) -> Tensor:
    """(length, hidden_size) float64: sine in the even, cosine in the odd dimensions (Vaswani et al., 2017)."""
    even = torch.arange(hidden_size) // 2 * 2
    rate = torch.exp(even.double() * (-math.log(10000.0) / hidden_size))
    angle = torch.arange(length).double()[:, None] * rate
    return torch.where(torch.arange(hidden_size) % 2 == 0, angle.sin(), angle.cos())


class InputRepresentation(nn.Module):
    """Projection of the features, plus positions, normalised: hidden state 0."""

    def __init__(self, input_dim: int, config: TransformerConfig):
        super().__init__()
        self.projection = nn.Linear(input_dim, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self._positions = torch.empty(0, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) to (B, T, H)."""
        x = self.projection(features)
        return self.dropout(self.norm(x + self.positions(x)))

    def positions(self, like: Tensor) -> Tensor:
        """(T, H), kept from call to call in the dtype and on the device of `like` (B, T, H)."""
        kept, length = self._positions, like.shape[1]
        if len(kept) < length or kept.dtype != like.dtype or kept.device != like.device:
            self._positions = kept = sinusoidal_positions(length, like.shape[2]).to(like)
        return kept[:length]


class Layer(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual and a layer norm."""

    def __init__(self, attention: Attention, config: TransformerConfig):
        super().__init__()
        self.attention = attention
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.feed_forward = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, lengths: Tensor, prepared: object, real: Tensor | None = None) -> Tensor:
        """hidden (B, T, H), lengths (B,), what the attention prepared for this pass, to (B, T, H).

        With `real` (tokens,), which of the B T tokens are no padding, only these are computed after the attention; the
        others are zero.
        """
        context, shape = self.attention(hidden, lengths, prepared), hidden.shape
        if real is not None:
            hidden, context = (x.flatten(0, 1).index_select(0, real) for x in (hidden, context))
        hidden = self.attention_norm(hidden + self.dropout(self.output(context)))
        inner = self.feed_forward(F.gelu(self.intermediate(hidden)))
        hidden = self.norm(hidden + self.dropout(inner))
        if real is not None:
            hidden = hidden.new_zeros(shape).flatten(0, 1).index_copy(0, real, hidden).view(shape)
        return hidden


class AudioAlbert(nn.Module):
    """The encoder: features to hidden states.

    Args:
        config: the model; its upstream names the attention variant.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        transformer = config.transformer
        attention = variant(config.upstream).attention
        self.input = InputRepresentation(config.audio.input_dim, transformer)
        self.num_layers = transformer.num_hidden_layers
        sets = 1 if transformer.share_layers else self.num_layers
        layers = [Layer(attention(transformer, config.attention), transformer) for _ in range(sets)]
        self.layer = layers[0] if transformer.share_layers else nn.ModuleList(layers)
        self.recompute = False  # in training, keep only each layer's input, and compute the rest anew for the gradient
        self.apply(lambda module: initialise(module, transformer.initializer_range))

    def forward(self, features: Tensor, lengths: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """Hidden states: the input representation, then each layer's output.

        Args:
            features: (B, T, D).
            lengths: (B,), true token counts, int64 on the CPU, each in [1, T].
            seeds: (B,), of what attention draws at random for an utterance in training (LSH alone does).

        Returns:
            num_layers + 1 tensors (B, T, H), zero beyond each utterance's end.
        """
        limit = self.layers()[0].attention.max_length
        if limit is not None and int(lengths.max()) > limit:
            return Windows(lengths, limit).blend(features, self._encode)
        return self._encode(features, lengths, seeds)

    def layers(self) -> list[Layer]:
        """From the input to the output; where layers are shared, the same one every time."""
        return [self.layer] * self.num_layers if isinstance(self.layer, Layer) else list(self.layer)

    def _encode(self, features: Tensor, lengths: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """`forward` for utterances that fit the attention."""
        hidden = self.input(features)
        states = [hidden]
        real = real_tokens(lengths, hidden)
        prepared, prepared_for = None, None
        for layer in self.layers():
            if layer is not prepared_for:
                prepared, prepared_for = layer.attention.prepare(lengths, hidden.shape[1], hidden, seeds), layer
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, lengths, prepared, real, use_reentrant=False)
            else:
                hidden = layer(hidden, lengths, prepared, real)
            states.append(hidden)
        if bool((lengths < hidden.shape[1]).any()):
            padding = ~key_mask(lengths, hidden.shape[1]).to(hidden.device)[..., None]
            states = [state.masked_fill(padding, 0.0) for state in states]
        return states


def real_tokens(lengths: Tensor, hidden: Tensor) -> Tensor | None:
    """Which of the B T tokens of (B, T, H) are no padding, on its device; None where the others are too few to matter.

    A graph that is compiled or exported is for any lengths, so it computes the padding.
    """
    size = hidden.shape[1]
    if torch.compiler.is_compiling() or int(lengths.sum()) > WORTH_PACKING * len(lengths) * size:
        return None
    return key_mask(lengths, size).flatten().nonzero()[:, 0].to(hidden.device)


def initialise(module: nn.Module, std: float) -> None:
    """Linear weights N(0, std), biases zero; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
