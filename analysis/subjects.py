"""What the benchmark times: our variants and their peers, all with the same shape, on the same batch."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saat.errors import SaatError, did_you_mean
from saat.pretrain.masking import mask_tokens
from saat.pretrain.model import MaskedAcousticModel
from saat.upstream.attention import REGISTRY
from saat.upstream.config import ModelConfig, model_config
from saat.upstream.encoder import AudioAlbert
from saat.upstream.s3prl_weights import from_s3prl

S3PRL = "s3prl_audio_albert"
PEERS = (S3PRL, "torch_transformer_encoder", "hf_albert")
VARIANTS = tuple(name for name, entry in REGISTRY.items() if entry.attention is not None)


@dataclass(frozen=True)
class Workload:
    """A batch of features, and what is done with it."""

    length: int = 500  # tokens of the longest utterance
    batch: int = 4
    train: bool = False  # a step of pre-training (forward, backward, optimizer) instead of inference
    ragged: bool = False  # lengths from a quarter to the whole, instead of all alike
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def mode(self) -> str:
        return "training" if self.train else "inference"

    def lengths(self) -> Tensor:
        """(B,), tokens."""
        if not self.ragged:
            return torch.full((self.batch,), self.length)
        return torch.linspace(self.length / 4, self.length, self.batch).round().long().clamp_min(1).flip(0)

    def features(self, dim: int) -> Tensor:
        """(B, T, dim), zero beyond each utterance's end."""
        x = torch.randn(self.batch, self.length, dim, generator=torch.Generator().manual_seed(0))
        mask = torch.arange(self.length) < self.lengths()[:, None]
        return (x * mask[..., None]).to(self.device, self.dtype)


def config_of(name: str, length: int) -> ModelConfig:
    """The paper's shape; the variants of a fixed size get the size that the batch needs."""
    return model_config(name, ({"transformer": {"max_length": max(length, 1)}}, "the benchmark"))


def run_of(name: str, work: Workload) -> Callable[[], object]:
    """One call is one pass over the batch, or one training step.

    Errors: SaatError for an unknown subject, or a peer whose package is not installed.
    """
    if name in VARIANTS:
        return _variant(name, work)
    builders = {S3PRL: _s3prl, "torch_transformer_encoder": _torch, "hf_albert": _hugging_face}
    if name not in builders:
        raise SaatError(f"unknown subject '{name}': {did_you_mean(name, (*VARIANTS, *PEERS))}")
    if name == "hf_albert" and importlib.util.find_spec("transformers") is None:
        raise SaatError("hf_albert needs the package transformers: pip install transformers, or leave it out")
    return builders[name](work)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return run


def _no_grad(function: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return function()

    return run


def _masked(work: Workload, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    target, lengths = work.features(config.audio.input_dim), work.lengths()
    masked, chosen = mask_tokens(target, lengths, torch.arange(work.batch), 0, config.task)
    return masked, lengths, chosen, target


def _variant(name: str, work: Workload) -> Callable[[], object]:
    config = config_of(name, work.length)
    torch.manual_seed(0)
    if work.train:
        model = MaskedAcousticModel(config).to(work.device, work.dtype).train()
        masked, lengths, chosen, target = _masked(work, config)
        seeds = torch.arange(work.batch)
        elements = int(chosen.sum()) * target.shape[-1]
        return _step(model, lambda: model(masked, lengths, chosen, target, seeds)[0] / elements)
    encoder = AudioAlbert(config)
    if name == "saat_qk":
        encoder.load_state_dict(from_s3prl(_s3prl_encoder().state_dict()))
    encoder = encoder.to(work.device, work.dtype).eval()
    features, lengths = work.features(config.audio.input_dim), work.lengths()
    return _no_grad(lambda: encoder(features, lengths))


def _s3prl_config() -> object:
    from s3prl.upstream.mockingjay.model import TransformerConfig

    return TransformerConfig(
        {
            "hidden_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "share_layer": True,
            "pre_layer_norm": False,
        }
    )


def _s3prl_encoder() -> nn.Module:
    from s3prl.upstream.mockingjay.model import TransformerModel

    torch.manual_seed(1)
    return TransformerModel(_s3prl_config(), config_of("saat_qk", 1).audio.input_dim)


def _s3prl(work: Workload) -> Callable[[], object]:
    """S3PRL's own Audio ALBERT, as its experts call it; in training with its head, and its loss on all predictions."""
    from s3prl.upstream.mockingjay.builder import position_encoding
    from s3prl.upstream.mockingjay.model import TransformerSpecPredictionHead

    config = config_of("saat_qk", work.length)
    lengths = work.lengths()
    mask = (torch.arange(work.length) < lengths[:, None]).to(work.device, work.dtype)
    positions = position_encoding(work.length, 768).to(work.device, work.dtype).expand(work.batch, -1, -1)
    if work.train:
        head = TransformerSpecPredictionHead(_s3prl_config(), config.audio.input_dim)
        model = nn.ModuleDict({"Transformer": _s3prl_encoder(), "SpecHead": head}).to(work.device, work.dtype).train()
        masked, _, chosen, target = _masked(work, config)
        label = chosen[..., None].expand_as(target)

        def loss() -> Tensor:
            hidden = model["Transformer"](masked, positions, mask, output_all_encoded_layers=False)
            predicted = model["SpecHead"](hidden)[0]
            return (predicted.masked_select(label) - target.masked_select(label)).abs().mean()

        return _step(model, loss)
    model = _s3prl_encoder().to(work.device, work.dtype).eval()
    features = work.features(config.audio.input_dim)
    return _no_grad(lambda: model(features, positions, mask))


def _torch(work: Workload) -> Callable[[], object]:
    """torch.nn's encoder layer, used by all 6 layers."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.1, "gelu", 1e-12, batch_first=True)
    return _peer(work, layer, lambda x, padding: _six_times(layer, x, padding))


def _six_times(layer: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    for _ in range(6):
        x = layer(x, src_key_padding_mask=padding)
    return x


def _hugging_face(work: Workload) -> Callable[[], object]:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=2,
        embedding_size=768,
        hidden_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=max(512, work.length),
        hidden_act="gelu",
    )
    model = AlbertModel(config, add_pooling_layer=False)

    def encode(x: Tensor, padding: Tensor | None) -> Tensor:
        mask = None if padding is None else (~padding).long()
        return model(inputs_embeds=x, attention_mask=mask, output_hidden_states=True).last_hidden_state

    return _peer(work, model, encode)


def _peer(work: Workload, inner: nn.Module, encode: Callable[[Tensor, Tensor | None], Tensor]) -> Callable[[], object]:
    """An encoder of hidden states between our projection of the features and, in training, our loss."""
    config = config_of("saat_qk", work.length)
    dim = config.audio.input_dim
    ends = nn.ModuleDict({"inner": inner, "first": nn.Linear(dim, 768), "last": nn.Linear(768, dim)})
    ends = ends.to(work.device, work.dtype).train(work.train)
    lengths = work.lengths()
    padding = (torch.arange(work.length) >= lengths[:, None]).to(work.device) if work.ragged else None
    if work.train:
        masked, _, chosen, target = _masked(work, config)
        return _step(
            ends, lambda: (ends["last"](encode(ends["first"](masked), padding)[chosen]) - target[chosen]).abs().mean()
        )
    features = work.features(dim)
    return _no_grad(lambda: encode(ends["first"](features), padding))
