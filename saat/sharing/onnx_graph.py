"""An upstream in tensor operations alone, which ONNX can hold: waveforms in, hidden states out, no Python inside."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.upstream.attention.base import key_mask
from saat.upstream.encoder import sinusoidal_positions
from saat.upstream.expert import UpstreamExpert
from saat.upstream.features import LOG_FLOOR, Features, deltas, normalise


class Graph(nn.Module):
    """The features without a loop over utterances; each variant by its definition, `weights()`.

    A graph cannot raise an error of its own, but looking up what a table has not does: `refusal` and, where the
    variant has learned weights of a fixed size, `positions` are such tables.

    Args:
        upstream: in eval.
    """

    def __init__(self, upstream: UpstreamExpert):
        super().__init__()
        self.audio = upstream.model_config.audio
        self.encoder = upstream.encoder
        self.max_length = self.encoder.layers()[0].attention.max_length
        features = Features(self.audio)
        self.n_fft = features.n_fft
        # The Fourier transform as a product. In float64: what a sum in float32 rounds is more than quiet bands have.
        sample, bin_ = torch.arange(self.n_fft), torch.arange(self.audio.n_freq)
        angle = 2 * math.pi / self.n_fft * (torch.outer(sample, bin_) % self.n_fft).double()
        basis = torch.stack([angle.cos(), angle.sin()], -1).flatten(1)  # (n_fft, 2 n_freq)
        self.register_buffer("basis", features.window.double()[:, None] * basis)
        self.register_buffer("filters", features.filters.double())
        self.register_buffer("refusal", torch.zeros(1, dtype=torch.float64))
        if self.max_length is not None:
            hidden_size = upstream.model_config.transformer.hidden_size
            self.register_buffer("positions", sinusoidal_positions(self.max_length, hidden_size).float())

    def forward(self, wavs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """wavs (B, S) float32, 16 kHz; samples (B,) int64, true lengths, from 1 to S.

        Returns: hidden_states (layers + 1, B, T, H), zero beyond each utterance's end; tokens (B,) int64.
        """
        tokens = (samples + self.audio.stride - 1) // self.audio.stride
        x = self.features(wavs, samples)
        real = key_mask(tokens, x.shape[1])[..., None]
        hidden = self.encoder.input.projection(x)
        hidden = self.encoder.input.norm(hidden + self._positions(hidden))
        states = [hidden]
        for layer in self.encoder.layers():
            attention = layer.attention
            context = attention.weights(hidden, tokens) @ attention.split(attention.value(hidden))
            hidden = layer.attention_norm(hidden + layer.output(context.transpose(1, 2).flatten(2)))
            hidden = layer.norm(hidden + layer.feed_forward(F.gelu(layer.intermediate(hidden))))
            states.append(hidden)
        return torch.stack([torch.where(real, state, torch.zeros_like(state)) for state in states]), tokens

    def _positions(self, hidden: Tensor) -> Tensor:
        """(T, H); where the variant has a limit, an error beyond it."""
        _, T, H = hidden.shape
        if self.max_length is None:
            return sinusoidal_positions(T, H).to(hidden.dtype)
        return self.positions.index_select(0, torch.arange(T))

    def features(self, wavs: Tensor, samples: Tensor) -> Tensor:
        """`Features.together` in float64: (B, S) and (B,) to tokens (B, T, D), float32."""
        audio, size = self.audio, wavs.shape[1]
        hop, stack = audio.hop, audio.stack
        x = self._log_mel(self._scaled(wavs, samples), samples)
        last = (samples // hop)[:, None]
        orders = [x]
        for _ in range(audio.delta):
            orders.append(deltas(orders[-1], last))
        index = torch.arange(x.shape[1])
        if audio.cmvn:
            orders = [normalise(order, (index <= last)[..., None]) for order in orders]
        x = torch.cat(orders, -1)
        kept = (index < ((samples + hop - 1) // hop)[:, None])[..., None]
        x = F.pad(torch.where(kept, x, torch.zeros_like(x)), (0, 0, 0, stack))
        T = (size + audio.stride - 1) // audio.stride
        return x[:, : T * stack].reshape(x.shape[0], T, stack * x.shape[2]).float()

    def _scaled(self, wavs: Tensor, samples: Tensor) -> Tensor:
        """(B, S) at the target level, float64, zero beyond each utterance's end; an error where `samples` are wrong."""
        wrong = ((samples < 1) | (samples > wavs.shape[1])).any().long()
        nothing = self.refusal.index_select(0, wrong[None])
        wavs = torch.where(key_mask(samples, wavs.shape[1]), wavs, torch.zeros_like(wavs)).double() + nothing
        level = ((wavs * wavs).sum(1) / samples).clamp_min(1e-30).sqrt() + LOG_FLOOR
        return wavs * (10 ** (self.audio.target_level / 20) / level)[:, None]

    def _log_mel(self, wavs: Tensor, samples: Tensor) -> Tensor:
        """(B, S) to (B, F, n_mels). Frames beyond an utterance's end are meaningless, but finite."""
        half, hop = self.n_fft // 2, self.audio.hop
        # Frame f holds samples f hop - half and on, reflected at the utterance's own ends; one too short for that is
        # lengthened by silence.
        start = torch.arange(1 + wavs.shape[1] // hop) * hop - half
        place = (start[:, None] + torch.arange(self.n_fft)).flatten()[None].abs()  # (1, F n_fft)
        ends = samples.clamp_min(half + 1)[:, None]
        place = torch.where(place < ends, place, (2 * ends - 2 - place).clamp_min(0))
        framed = F.pad(wavs, (0, half + 1)).gather(1, place).unflatten(1, (-1, self.n_fft))  # (B, F, n_fft)
        spectrum = framed @ self.basis
        return ((spectrum * spectrum) @ self.filters + LOG_FLOOR).log()
