"""The model config: typed, validated, defaults in one place (SPEC section 1, the paper's setting).

A model config file (`configs/model/<variant>.yaml`, or `-g FILE`) has these sections; every key may be left out.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saat.errors import SaatError, did_you_mean

SAMPLE_RATE = 16000
# Configs come with checkpoints that others made: sizes no shape of a weight would contradict are bounded here.
MAX_LAYERS = 1000
MAX_FREQ = 2**15 + 1


@dataclass(frozen=True)
class AudioConfig:
    """Acoustic features. Paper: 80 log-mel + deltas, 3 frames a token. S3PRL: `delta: 0, stack: 1`."""

    target_level: float = -25.0  # dB; every waveform is scaled to this RMS
    win_ms: float = 25.0
    hop_ms: float = 10.0
    n_freq: int = 201
    n_mels: int = 80
    delta: int = 1  # how many orders of deltas are appended
    cmvn: bool = True  # mean and variance normalised over the utterance
    stack: int = 3  # consecutive frames in one token

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop_ms * SAMPLE_RATE / 1000)

    @property
    def stride(self) -> int:
        """Samples from token to token."""
        return self.hop * self.stack

    @property
    def input_dim(self) -> int:
        """Values in a token."""
        return self.n_mels * (1 + self.delta) * self.stack


@dataclass(frozen=True)
class TransformerConfig:
    """The Audio ALBERT every variant shares: one set of layer weights, used by all layers."""

    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0  # costs fused attention its speed on a CPU
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    max_length: int = 500  # tokens; only variants with learned weights of a fixed size have such a limit
    share_layers: bool = True  # False: weights of its own for each layer, as in Mockingjay and TERA

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class TaskConfig:
    """Masked acoustic modelling (SPEC section 3)."""

    sequence_length: int = 1500  # frames in a random crop
    mask_proportion: float = 0.15  # share of an utterance's tokens that are chosen
    mask_consecutive: int = 1  # tokens in a masked run (S3PRL: 7, without stacking)
    zero_proportion: float = 0.8  # how often the chosen tokens are zeroed …
    replace_proportion: float = 0.1  # … or replaced by other tokens of the utterance; else left
    target: str = "input"  # what is reconstructed: `input` features or the `linear` spectrogram


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model; saved in its checkpoint as `Upstream_Config`."""

    upstream: str = "saat_ours"
    audio: AudioConfig = field(default_factory=AudioConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    attention: Any = None  # the variant's own config dataclass
    task: TaskConfig = field(default_factory=TaskConfig)

    def to_dict(self) -> dict:
        """Plain containers, for YAML and for checkpoints."""
        return asdict(self)


def read_yaml(path: str | Path) -> dict:
    """A YAML file as a dict; errors name the file."""
    path = Path(path)
    if not path.is_file():
        raise SaatError(f"no such config file: {path}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SaatError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SaatError(f"{path}: expected sections with keys, found {type(data).__name__}")
    return data


def typed(schema: Any, data: dict | None, where: str) -> Any:
    """`data` merged onto the dataclass instance `schema`: types checked, unknown keys named with the nearest known.

    Errors: SaatError that says where (a file or option) and which key.
    """
    data = data or {}
    _check_keys(schema, data, where, ())
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(data))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        message = str(error).splitlines()[0]
        raise SaatError(f"{where}: {key}: {message}") from error


def _check_keys(schema: Any, data: dict, where: str, above: tuple[str, ...]) -> None:
    if not isinstance(data, dict):
        raise SaatError(f"{where}: {'.'.join(above)} must be a section with keys, not {data!r}")
    known = {f.name: getattr(schema, f.name) for f in fields(schema)}
    for key, value in data.items():
        if key not in known:
            name = ".".join((*above, str(key)))
            raise SaatError(f"{where}: unknown key '{name}': {did_you_mean(str(key), known)}")
        if is_dataclass(known[key]):
            _check_keys(known[key], value or {}, where, (*above, key))


def model_config(upstream: str, *layers: tuple[dict | None, str]) -> ModelConfig:
    """The config of a variant: its packaged YAML, then `layers` of (overrides, where they come from), in order.

    Errors: SaatError for an unknown upstream, key or a value out of range.
    """
    from saat.configs import find
    from saat.upstream.attention import variant

    chosen = variant(upstream)
    config = ModelConfig(upstream=upstream)
    attention = chosen.config() if chosen.config else None
    packaged = find("model", upstream)
    for data, where in ((read_yaml(packaged), str(packaged)), *layers):
        data = dict(data or {})
        if data.get("upstream", upstream) != upstream:
            raise SaatError(f"{where} is a config of '{data['upstream']}', but '{upstream}' was asked for")
        own = data.pop("attention", None) or {}
        config = typed(config, data, where)
        if attention is not None:
            attention = typed(attention, own, f"{where}, section attention")
        elif own:
            raise SaatError(f"{where}: {upstream} has no options in the section attention, remove {list(own)}")
    config = replace(config, attention=attention)
    check(config)
    return config


def differences(before: dict, now: dict, above: str = "") -> list[str]:
    """A line for each key of nested dicts whose values differ: `runner.log_step: 10 in the checkpoint, 20 here`."""
    found = []
    for key in before.keys() | now.keys():
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{above}{key}.")
        elif a != b:
            found.append(f"{above}{key}: {a} in the checkpoint, {b} here")
    return sorted(found)


def check(config: ModelConfig) -> None:
    """Values that make no model: SaatError says which and why."""
    audio, transformer, task = config.audio, config.transformer, config.task
    for section, name in [
        (audio, "n_mels"),
        (audio, "stack"),
        (audio, "hop_ms"),
        (audio, "win_ms"),
        (transformer, "hidden_size"),
        (transformer, "num_hidden_layers"),
        (transformer, "num_attention_heads"),
        (transformer, "intermediate_size"),
        (transformer, "max_length"),
        (task, "mask_consecutive"),
    ]:
        if getattr(section, name) <= 0:
            raise SaatError(f"model config: {name} must be positive, not {getattr(section, name)}")
    if transformer.num_hidden_layers > MAX_LAYERS:
        raise SaatError(f"model config: num_hidden_layers must be at most {MAX_LAYERS}")
    if not 2 <= audio.n_freq <= MAX_FREQ or audio.n_mels > audio.n_freq:
        raise SaatError(
            f"model config: n_freq must lie in [2, {MAX_FREQ}] and n_mels be at most n_freq, "
            f"not {audio.n_freq} and {audio.n_mels}"
        )
    if round(audio.win_ms * SAMPLE_RATE / 1000) > 2 * (audio.n_freq - 1) or audio.hop < 1:
        raise SaatError(
            f"model config: a window of {audio.win_ms} ms does not fit an FFT of n_freq {audio.n_freq} bins, "
            f"or hop_ms {audio.hop_ms} is less than a sample"
        )
    if not 0 <= audio.delta <= 4:
        raise SaatError(f"model config: delta must lie in [0, 4], not {audio.delta}")
    if transformer.hidden_size % transformer.num_attention_heads:
        raise SaatError(
            f"model config: hidden_size {transformer.hidden_size} is not a multiple of "
            f"num_attention_heads {transformer.num_attention_heads}"
        )
    if not 0 < task.mask_proportion <= 1:
        raise SaatError(f"model config: mask_proportion must lie in (0, 1], not {task.mask_proportion}")
    if min(task.zero_proportion, task.replace_proportion) < 0 or (
        task.zero_proportion + task.replace_proportion > 1 + 1e-9
    ):
        raise SaatError("model config: zero_proportion and replace_proportion must be shares that sum to at most 1")
    if task.target not in ("input", "linear"):
        raise SaatError(f"model config: target must be 'input' or 'linear', not '{task.target}'")
    if task.sequence_length < audio.stack:
        raise SaatError(f"model config: sequence_length {task.sequence_length} frames is shorter than a token")
