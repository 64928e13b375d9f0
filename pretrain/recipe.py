"""Recipes: how a model is pre-trained. Typed, validated, with S3PRL's keys; `-o` overrides in S3PRL's syntax."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from saat import configs
from saat.errors import SaatError, did_you_mean
from saat.pretrain.device import PRECISIONS
from saat.upstream.config import read_yaml, typed

DEFAULT = "mini"
OPTIMIZERS = ("lamb", "adamw")
SCHEDULES = ("linear", "cosine")
ARGUMENTS = ("seed", "device", "expname", "expdir")  # what `-o args.…` may set


@dataclass(frozen=True)
class RunnerConfig:
    """The loop. A step is one update of the weights."""

    total_steps: int = 500000
    n_epochs: int = -1  # where positive: as many steps as that takes, whatever total_steps says
    gradient_clipping: float = 5.0  # norm of the whole gradient
    gradient_accumulate_steps: int = 1  # batches in a step
    precision: str = "float32"  # of matrix products: float32, bfloat16, or float16 with a scaled loss
    recompute: bool = False  # keep only the layers' inputs for the gradient: a sixth of the memory, half more time
    compile: bool = False  # torch.compile the encoder; on a CPU it only costs time
    max_skipped: int = 50  # steps in a row whose gradient is not finite, before the run is given up
    log_step: int = 1000  # TensorBoard and metrics.jsonl: loss, learning rate, gradient norm, speed, spectrograms
    eval_step: int = 5000  # the loss on held-out utterances, and attention maps
    save_step: int = 10000
    max_keep: int = 5  # checkpoints; older ones are removed


@dataclass(frozen=True)
class OptimizerConfig:
    """The learning rate rises linearly for the first part of the steps, then falls to zero."""

    name: str = "lamb"
    lr: float = 5.0e-5
    R_lr_scale: float = 1.0  # the learning rate of R (saat_syn_random, saat_ours) in multiples of lr
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1.0e-6
    weight_decay: float = 0.01  # not on biases, norms and R
    warmup_proportion: float = 0.07
    schedule: str = "linear"  # how it falls: linear or cosine


@dataclass(frozen=True)
class DataConfig:
    """The corpus and how it is read."""

    corpus: list[str] = field(default_factory=list)  # folders of audio, at any depth; S3PRL's .csv, .txt with paths
    root: str | None = None  # where relative paths in such lists start; else at the list or a folder above it
    splits: str | None = None  # a list of utterance ids, or a folder with train_split.txt: only these are used
    demo_corpus: bool = False  # without a corpus: the embedded one, made where it is absent
    held_out: int = 0  # utterances kept from training, for the loss that eval_step asks for
    train_batch_size: int = 50  # crops in a batch, of all processes together
    num_workers: int = 2  # processes that decode audio
    cache_gb: float = 0.0  # disk for decoded audio, so that other rates, mp3 and ogg are decoded once; 0: none is kept
    strict: bool = False  # an unusable file ends the run instead of being skipped


@dataclass(frozen=True)
class ExpertConfig:
    """S3PRL's section for what the pre-training expert gets."""

    datarc: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Recipe:
    """One recipe file; in a checkpoint, `Config`."""

    runner: RunnerConfig = field(default_factory=RunnerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pretrain_expert: ExpertConfig = field(default_factory=ExpertConfig)
    model: dict[str, Any] = field(default_factory=dict)  # overrides of the model config

    def to_dict(self) -> dict:
        """Plain containers, for YAML and for checkpoints."""
        return asdict(self)

    @property
    def datarc(self) -> DataConfig:
        return self.pretrain_expert.datarc

    def with_datarc(self, **values: Any) -> "Recipe":
        """The recipe with other values in `pretrain_expert.datarc`."""
        return replace(self, pretrain_expert=ExpertConfig(replace(self.datarc, **values)))


def recipe_file(name: str) -> Path:
    """The file of `-c`: a packaged recipe's name, or a path. Errors: SaatError names the nearest recipe."""
    path = Path(name).expanduser()
    if name not in configs.names("pretrain") and (path.suffix in (".yaml", ".yml") or path.is_file()):
        return path
    return configs.find("pretrain", name)


def load_recipe(source: str | dict, where: str = "") -> Recipe:
    """A recipe from `-c`, or from the `Config` of a checkpoint.

    Errors: SaatError for an unknown recipe or key (the nearest is named), or a value of the wrong type or range.
    """
    if isinstance(source, dict):
        return merged(Recipe(), source, where)
    path = recipe_file(source)
    return merged(Recipe(), read_yaml(path), str(path))


def merged(recipe: Recipe, values: dict, where: str) -> Recipe:
    """`recipe` with `values` in their place."""
    expert = values.get("pretrain_expert")
    if isinstance(expert, dict) and isinstance(expert.get("datarc"), dict):
        values = {**values, "pretrain_expert": {**expert, "datarc": _corpus_as_list(expert["datarc"])}}
    recipe = typed(recipe, values, where)
    # Absolute, so that a run can be resumed from another directory.
    recipe = recipe.with_datarc(corpus=[str(Path(folder).expanduser().resolve()) for folder in recipe.datarc.corpus])
    for name in ("splits", "root"):
        if getattr(recipe.datarc, name):
            recipe = recipe.with_datarc(**{name: str(Path(getattr(recipe.datarc, name)).expanduser().resolve())})
    _check(recipe, where)
    return recipe


def data_config(values: dict, where: str) -> DataConfig:
    """A section `datarc` by itself, as S3PRL hands it to an expert. Errors: as `load_recipe`."""
    datarc = typed(DataConfig(), _corpus_as_list(values), where)
    _check_data(datarc, where)
    return datarc


def _corpus_as_list(datarc: dict) -> dict:
    """A single corpus folder need not be a list."""
    return {**datarc, "corpus": [datarc["corpus"]]} if isinstance(datarc.get("corpus"), str) else datarc


def parse_overrides(text: str | None) -> tuple[dict, dict]:
    """S3PRL's `-o`: "config.optimizer.lr=1e-3,,args.seed=3" to nested (config, args); values are YAML, never code.

    Errors: SaatError for what is not KEY=VALUE, or an unknown start or argument.
    """
    config: dict = {}
    args: dict = {}
    if text is None or text.strip().lower() in ("", "none"):
        return config, args
    for option in filter(None, (part.strip() for part in text.split(",,"))):
        key, equals, value = option.partition("=")
        first, *rest = key.strip().split(".")
        if not equals or not rest or not all(rest):
            raise SaatError(f"-o '{option}': expected config.SECTION.KEY=VALUE or args.NAME=VALUE, joined by ',,'")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SaatError(f"-o '{option}': '{value}' is not a YAML value: {error}") from error
        if first == "args":
            name = ".".join(rest)
            if name not in ARGUMENTS:
                raise SaatError(f"-o '{option}': unknown argument '{name}': {did_you_mean(name, ARGUMENTS)}")
            args[name] = parsed
        elif first == "config":
            section = config
            for name in rest[:-1]:
                section = section.setdefault(name, {})
                if not isinstance(section, dict):
                    raise SaatError(f"-o '{option}': {name} was given a value before, it has no keys")
            section[rest[-1]] = parsed
        else:
            raise SaatError(f"-o '{option}': unknown '{first}': {did_you_mean(first, ('config', 'args'))}")
    return config, args


def _check(recipe: Recipe, where: str) -> None:
    runner, optimizer = recipe.runner, recipe.optimizer
    if optimizer.name not in OPTIMIZERS:
        raise SaatError(f"{where}: unknown optimizer '{optimizer.name}': {did_you_mean(optimizer.name, OPTIMIZERS)}")
    if optimizer.schedule not in SCHEDULES:
        raise SaatError(
            f"{where}: unknown optimizer.schedule '{optimizer.schedule}': {did_you_mean(optimizer.schedule, SCHEDULES)}"
        )
    if runner.precision not in PRECISIONS:
        raise SaatError(
            f"{where}: unknown runner.precision '{runner.precision}': {did_you_mean(runner.precision, PRECISIONS)}"
        )
    counts = (
        "gradient_accumulate_steps",
        "log_step",
        "eval_step",
        "save_step",
        "max_keep",
        "max_skipped",
        "total_steps",
    )
    for name in counts:
        if getattr(runner, name) < 1 and not (name == "total_steps" and runner.n_epochs > 0):
            raise SaatError(f"{where}: runner.{name} must be at least 1, not {getattr(runner, name)}")
    positive = {"runner.gradient_clipping": runner.gradient_clipping, "optimizer.lr": optimizer.lr}
    for name, value in (positive | {"optimizer.R_lr_scale": optimizer.R_lr_scale}).items():
        if not 0 < value < float("inf"):
            raise SaatError(f"{where}: {name} must be a positive number, not {value}")
    if not 0 <= optimizer.warmup_proportion < 1:
        raise SaatError(f"{where}: optimizer.warmup_proportion must lie in [0, 1), not {optimizer.warmup_proportion}")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise SaatError(f"{where}: optimizer.betas must be two numbers in [0, 1), not {optimizer.betas}")
    _check_data(recipe.datarc, where)


def _check_data(datarc: DataConfig, where: str) -> None:
    if datarc.train_batch_size < 1:
        raise SaatError(f"{where}: datarc.train_batch_size must be at least 1, not {datarc.train_batch_size}")
    if datarc.held_out < 0:
        raise SaatError(f"{where}: datarc.held_out must be 0 or more, not {datarc.held_out}")
    if not datarc.cache_gb >= 0:
        raise SaatError(f"{where}: datarc.cache_gb must be 0 or more, not {datarc.cache_gb}")
    if datarc.num_workers < 0:
        raise SaatError(f"{where}: datarc.num_workers must be 0 or more, not {datarc.num_workers}")
