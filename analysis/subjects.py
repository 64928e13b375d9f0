"""What the benchmark times: our variants and their peers, all with the same shape, on the same batch."""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from saat.errors import SaatError, did_you_mean
from saat.pretrain.masking import mask_tokens
from saat.pretrain.model import MaskedAcousticModel
from saat.upstream.attention import REGISTRY
from saat.upstream.config import ModelConfig, model_config
from saat.upstream.encoder import AudioAlbert
from saat.upstream.features import Features
from saat.upstream.quantize import quantised
from saat.upstream.s3prl_weights import from_s3prl

S3PRL = "s3prl_audio_albert"
INT8 = "_int8"  # ending of a variant whose linear layers are quantised
PEERS = (S3PRL, "torch_transformer_encoder", "hf_albert")
VARIANTS = tuple(name for name, entry in REGISTRY.items() if entry.attention is not None)


@dataclass(frozen=True)
class Workload:
    """A batch of features, and what is done with it."""

    length: int = 500  # tokens of the longest utterance
    batch: int = 4
    train: bool = False  # a step of pre-training (forward, backward, optimizer) instead of inference
    hidden: int = 768  # of the model; 12 heads, feed-forward 4 times as wide
    ragged: bool = False  # lengths from a quarter to the whole, instead of all alike
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    end_to_end: bool = False  # from waveforms to hidden states, with S3PRL's features: 80 log-mel, a token each 10 ms
    speech: Tensor | None = None  # (samples,) 16 kHz, to take the utterances from; noise without

    def with_length(self, length: int) -> "Workload":
        """The same with utterances of another length."""
        return replace(self, length=length)

    @property
    def mode(self) -> str:
        return "training" if self.train else "inference"

    def lengths(self) -> Tensor:
        """(B,), tokens."""
        if not self.ragged:
            return torch.full((self.batch,), self.length)
        return torch.linspace(self.length / 4, self.length, self.batch).round().long().clamp_min(1).flip(0)

    def waveforms(self, stride: int) -> list[Tensor]:
        """B utterances of `lengths()` tokens of `stride` samples, on the device."""
        samples = (self.lengths() * stride).tolist()
        speech = self.speech
        if speech is None:
            speech = 0.05 * torch.randn(sum(samples), generator=torch.Generator().manual_seed(0))
        repeated = speech.repeat(-(-sum(samples) // len(speech)))
        return [wav.clone().to(self.device) for wav in repeated[: sum(samples)].split(samples)]

    def features(self, config: ModelConfig) -> Tensor:
        """(B, T, D), zero beyond each utterance's end."""
        with torch.no_grad():
            features, lengths = Features(config.audio).to(self.device)(self.waveforms(config.audio.stride))
        assert torch.equal(lengths, self.lengths())
        return features.to(self.dtype)

    def config(self, name: str = "saat_qk") -> ModelConfig:
        """Of a variant; those of a fixed size get the size that the batch needs."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": 4 * self.hidden, "max_length": self.length}
        # From waveforms S3PRL's features, so that its own upstream can be among the subjects.
        audio = {"delta": 0, "stack": 1} if self.end_to_end else {}
        return model_config(name, ({"transformer": sizes, "audio": audio}, "the benchmark"))

    def s3prl_shape(self) -> dict:
        """The same of S3PRL's Audio ALBERT."""
        transformer = self.config().transformer
        return {
            "input_dim": -1,
            "hidden_size": self.hidden,
            "num_hidden_layers": transformer.num_hidden_layers,
            "num_attention_heads": transformer.num_attention_heads,
            "intermediate_size": transformer.intermediate_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "share_layer": True,
            "pre_layer_norm": False,
        }


def run_of(name: str, work: Workload) -> Callable[[], object]:
    """One call is one pass over the batch, or one training step.

    Errors: SaatError for an unknown subject, or a peer whose package is not installed.
    """
    if work.end_to_end:
        if name not in (*VARIANTS, S3PRL) or work.train:
            raise SaatError(f"{name}: only the inference of upstreams can be timed end to end; leave the others out")
        upstream = expert_of(name, work).to(work.device, work.dtype)
        wavs = [wav.to(work.dtype) for wav in work.waveforms(160)]
        return _no_grad(lambda: upstream(wavs))
    if name.removesuffix(INT8) in VARIANTS:
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
    target, lengths = work.features(config), work.lengths()
    masked, chosen = mask_tokens(target, lengths, torch.arange(work.batch), 0, config.task)
    return masked, lengths, chosen, target


def _variant(name: str, work: Workload) -> Callable[[], object]:
    int8, name = name.endswith(INT8), name.removesuffix(INT8)
    if int8 and (work.train or work.device != "cpu" or work.dtype != torch.float32):
        raise SaatError(f"{name}{INT8} is for inference on the CPU, with float32 around it")
    config = work.config(name)
    torch.manual_seed(0)
    if work.train:
        model = MaskedAcousticModel(config).to(work.device, work.dtype).train()
        masked, lengths, chosen, target = _masked(work, config)
        seeds = torch.arange(work.batch)
        elements = int(chosen.sum()) * target.shape[-1]
        return _step(model, lambda: model(masked, lengths, chosen, target, seeds)[0] / elements)
    encoder = AudioAlbert(config)
    if name == "saat_qk":
        encoder.load_state_dict(from_s3prl(_s3prl_encoder(work).state_dict()))
    encoder = encoder.to(work.device, work.dtype).eval()
    if int8:
        encoder = quantised(encoder, "int8")
    features, lengths = work.features(config), work.lengths()
    return _no_grad(lambda: encoder(features, lengths))


S3PRL_FEATURES = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
S3PRL_AUDIO = {"target_level": -25, "win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 80, "n_mfcc": 13}


def expert_of(name: str, work: Workload) -> nn.Module:
    """An upstream with random weights, in eval."""
    if name == S3PRL:
        return _s3prl_expert(work)
    from saat.upstream.expert import UpstreamExpert

    values = work.config(name).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.yaml"
        path.write_text(json.dumps(values))
        return UpstreamExpert(name, model_config=str(path), untrained=True).eval()


def _s3prl_expert(work: Workload) -> nn.Module:
    """S3PRL's own upstream, by its own route: a checkpoint file."""
    from s3prl.upstream.audio_albert.expert import UpstreamExpert

    config = {
        "transformer": work.s3prl_shape(),
        "audio": {**S3PRL_AUDIO, "input": S3PRL_FEATURES, "target": S3PRL_FEATURES},
        "task": {"sequence_length": work.length + 1},  # it has one frame more than we
    }
    states = {"Upstream_Config": config, "Config": {}, "Transformer": _s3prl_encoder(work).state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states-0.ckpt"
        torch.save(states, path)
        return UpstreamExpert(str(path)).eval()


def _s3prl_encoder(work: Workload) -> nn.Module:
    from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel

    torch.manual_seed(1)
    return TransformerModel(TransformerConfig(work.s3prl_shape()), work.config().audio.input_dim)


def _s3prl(work: Workload) -> Callable[[], object]:
    """S3PRL's own Audio ALBERT, as its experts call it; in training with its head, and its loss on all predictions."""
    from s3prl.upstream.mockingjay.builder import position_encoding
    from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerSpecPredictionHead

    config = work.config()
    lengths = work.lengths()
    mask = (torch.arange(work.length) < lengths[:, None]).to(work.device, work.dtype)
    positions = position_encoding(work.length, work.hidden).to(work.device, work.dtype).expand(work.batch, -1, -1)
    if work.train:
        head = TransformerSpecPredictionHead(TransformerConfig(work.s3prl_shape()), config.audio.input_dim)
        model = (
            nn.ModuleDict({"Transformer": _s3prl_encoder(work), "SpecHead": head}).to(work.device, work.dtype).train()
        )
        masked, _, chosen, target = _masked(work, config)
        label = chosen[..., None].expand_as(target)

        def loss() -> Tensor:
            hidden = model["Transformer"](masked, positions, mask, output_all_encoded_layers=False)
            predicted = model["SpecHead"](hidden)[0]
            return (predicted.masked_select(label) - target.masked_select(label)).abs().mean()

        return _step(model, loss)
    model = _s3prl_encoder(work).to(work.device, work.dtype).eval()
    features = work.features(config)
    return _no_grad(lambda: model(features, positions, mask))


def _torch(work: Workload) -> Callable[[], object]:
    """torch.nn's encoder layer, used by all 6 layers."""
    layer = nn.TransformerEncoderLayer(work.hidden, 12, 4 * work.hidden, 0.1, "gelu", 1e-12, batch_first=True)
    return _peer(work, layer, lambda x, padding: _six_times(layer, x, padding))


def _six_times(layer: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    for _ in range(6):
        x = layer(x, src_key_padding_mask=padding)
    return x


def _hugging_face(work: Workload) -> Callable[[], object]:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=2,
        embedding_size=work.hidden,
        hidden_size=work.hidden,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=4 * work.hidden,
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
    config = work.config()
    dim = config.audio.input_dim
    ends = nn.ModuleDict({"inner": inner, "first": nn.Linear(dim, work.hidden), "last": nn.Linear(work.hidden, dim)})
    ends = ends.to(work.device, work.dtype).train(work.train)
    lengths = work.lengths()
    padding = (torch.arange(work.length) >= lengths[:, None]).to(work.device) if work.ragged else None
    if work.train:
        masked, _, chosen, target = _masked(work, config)
        return _step(
            ends, lambda: (ends["last"](encode(ends["first"](masked), padding)[chosen]) - target[chosen]).abs().mean()
        )
    features = work.features(config)
    return _no_grad(lambda: encode(ends["first"](features), padding))
