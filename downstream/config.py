"""What a probe's config file may hold: S3PRL's sections and keys, checked before anything is computed."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from saat.errors import SaatError, did_you_mean
from saat.upstream.config import typed

log = logging.getLogger("saat.downstream")


@dataclass(frozen=True)
class DataConfig:
    """`downstream_expert.datarc`: where the corpus and its labels are."""

    corpus: Any = None  # a folder in LibriSpeech's layout, or a list of them
    splits: str | None = None  # a folder with train_split.txt, test_split.txt and maybe dev_split.txt; none: seeded
    phones: str | None = None  # a text file `utt l0 l1 …` (10 ms each) or a folder of TextGrids
    split_seed: int = 0  # of whatever part of the split no list says
    train_batch_size: int = 16  # utterances
    eval_batch_size: int = 16
    num_workers: int = 2  # processes that read audio; they change nothing but the speed
    strict: bool = False  # a file or alignment that cannot be used ends the run instead of being skipped


@dataclass(frozen=True)
class ModelrcConfig:
    """`downstream_expert.modelrc`: the head."""

    hidden_size: int = 768  # of the hidden layers; the speaker probes have none


@dataclass(frozen=True)
class RunnerConfig:
    """`runner`: the keys S3PRL's runner reads. Those without a default here must be given."""

    total_steps: int | None = None
    gradient_clipping: float | None = None
    gradient_accumulate_steps: int | None = None
    log_step: int | None = None
    eval_step: int | None = None
    save_step: int | None = None
    max_keep: int | None = None
    eval_dataloaders: list[str] | None = None
    train_dataloader: str = "train"
    evaluate_ratio: float = 1.0
    fp16: bool = False


@dataclass(frozen=True)
class ExpertConfig:
    """`downstream_expert`."""

    datarc: DataConfig = field(default_factory=DataConfig)
    modelrc: ModelrcConfig = field(default_factory=ModelrcConfig)


SECTIONS = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert")


def expert_config(downstream_expert: dict | None) -> ExpertConfig:
    """The typed `downstream_expert` section. Errors: SaatError that names the key, and the nearest known one."""
    config = typed(ExpertConfig(), downstream_expert, "downstream_expert")
    for section, name in [
        (config.datarc, "train_batch_size"),
        (config.datarc, "eval_batch_size"),
        (config.modelrc, "hidden_size"),
    ]:
        if getattr(section, name) < 1:
            raise SaatError(f"downstream_expert: {name} must be at least 1, not {getattr(section, name)}")
    return config


def check_experiment(given: dict[str, Any]) -> None:
    """Check the sections that S3PRL itself reads, so that a slip is an error now and not at the first checkpoint.

    Args:
        given: what S3PRL's runner hands to an expert besides its own section: the other sections of the config, and
            the command line (whose values are never sections).

    Errors: SaatError that names the section or key, and the nearest known one.
    """
    sections = {key: value for key, value in given.items() if isinstance(value, dict)}
    for name in sections:
        if name not in SECTIONS:
            raise SaatError(f"config: unknown section '{name}': {did_you_mean(name, SECTIONS)}")
    if "runner" in sections:
        runner = _check_runner(sections["runner"])
        if given.get("mode") == "train":
            _check_saving(runner)
    if "optimizer" in sections:
        _check_optimizer(sections["optimizer"])


def _check_runner(section: dict) -> RunnerConfig:
    runner = typed(RunnerConfig(), section, "runner")
    missing = [f.name for f in fields(runner) if getattr(runner, f.name) is None]
    if missing:
        raise SaatError(f"runner: {', '.join(missing)} must be set, as in the config.yaml beside each probe")
    steps = ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep")
    for name in steps:
        if getattr(runner, name) < 1:
            raise SaatError(f"runner: {name} must be at least 1, not {getattr(runner, name)}")
    check_splits(runner.eval_dataloaders, "runner.eval_dataloaders")
    return runner


def _check_saving(runner: RunnerConfig) -> None:
    """S3PRL saves at multiples of save_step and at a new best on dev, and not at the end."""
    total, save = runner.total_steps, runner.save_step
    best = "dev" in runner.eval_dataloaders and runner.eval_step <= total
    if save > total and not best:
        raise SaatError(f"runner: nothing would be saved: lower save_step ({save}) to total_steps ({total}) or a part")
    if total % save:
        log.warning("runner.save_step %d does not divide total_steps %d: the last steps will not be saved", save, total)


def check_splits(splits: Iterable[str], where: str) -> None:
    """SaatError for a split that is none of train, dev, test."""
    for split in splits:
        if split not in ("train", "dev", "test"):
            raise SaatError(f"{where}: unknown split '{split}': {did_you_mean(split, ('train', 'dev', 'test'))}")


def _check_optimizer(section: dict) -> None:
    from s3prl import optimizers

    known = [name[len("get_") :] for name in dir(optimizers) if name.startswith("get_")]
    known = [name for name in known if name not in ("optimizer", "grouped_parameters")]
    name = section.get("name")
    if name not in known:
        raise SaatError(f"optimizer.name: S3PRL has no optimizer '{name}': {did_you_mean(str(name), known)}")
    rate = section.get("lr", 0.0)
    if not isinstance(rate, int | float):
        # YAML 1.1 reads 1e-3 as text.
        raise SaatError(f"optimizer.lr must be a number, not {rate!r}; in YAML, write 1.0e-3")
