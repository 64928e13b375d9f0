"""The encoder with the head that reconstructs acoustic features from it (SPEC section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.upstream.config import ModelConfig, TransformerConfig
from saat.upstream.encoder import AudioAlbert, initialise


class SpecHead(nn.Module):
    """Prediction head: linear, GELU, layer norm, linear.

    Args:
        config: the encoder's sizes.
        output_dim: values to predict for a token.
    """

    def __init__(self, config: TransformerConfig, output_dim: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, output_dim)
        self.apply(lambda module: initialise(module, config.initializer_range))

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) to (…, output_dim)."""
        return self.output(self.norm(F.gelu(self.dense(hidden))))


class MaskedAcousticModel(nn.Module):
    """The encoder and the head; their names are the keys of a checkpoint.

    Args:
        config: the model.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.Transformer = AudioAlbert(config)
        self.SpecHead = SpecHead(config.transformer, target_dim(config))

    def forward(
        self, masked: Tensor, lengths: Tensor, chosen: Tensor, target: Tensor, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of absolute errors over every element of the chosen tokens.

        A sum, so that the caller can divide by the number of such elements in a batch that is computed in parts. The
        last token of an utterance counts whole, its frames beyond the end (zeros in input and target) included.

        Args:
            masked: (B, T, D), the input.
            lengths: (B,), tokens, on the CPU.
            chosen: (B, T), bool, the tokens to reconstruct.
            target: (B, T, target_dim).
            seeds: (B,), as the encoder's.

        Returns:
            The sum, a scalar; the last hidden state (B, T, H).
        """
        hidden = self.Transformer(masked, lengths, seeds)[-1]
        predicted = self.SpecHead(hidden[chosen])  # (chosen tokens, target_dim): the others are never needed
        return (predicted.to(target.dtype) - target[chosen]).abs().sum(), hidden


def new_model(config: ModelConfig, seed: int) -> MaskedAcousticModel:
    """The weights a pre-training with `seed` starts from; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAcousticModel(config)


def target_dim(config: ModelConfig) -> int:
    """Values a token of the reconstruction target has."""
    audio = config.audio
    return audio.input_dim if config.task.target == "input" else audio.n_freq * audio.stack


def target_bands(config: ModelConfig) -> int:
    """Bands of a spectrogram the target can be shown as."""
    return config.audio.n_mels if config.task.target == "input" else config.audio.n_freq


def frames(tokens: Tensor, stack: int, bands: int) -> Tensor:
    """What a person looks at: tokens (T, stack D) to frames (T stack, bands), without the deltas."""
    return tokens.unflatten(-1, (stack, -1)).flatten(0, 1)[:, :bands]
