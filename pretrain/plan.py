"""What is to be done: command line, recipe, overrides and checkpoint put together. Files are read, none is written."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.device import choose_device
from saat.pretrain.distributed import say
from saat.pretrain.recipe import DEFAULT, Recipe, load_recipe, merged, parse_overrides, recipe_file
from saat.sharing import published
from saat.upstream import checkpoint
from saat.upstream.attention import variant
from saat.upstream.config import ModelConfig, differences, model_config, read_yaml

SEED = 1337
# What may change in the model without its weights becoming those of another.
FREE = ("task.", "transformer.hidden_dropout_prob", "transformer.attention_probs_dropout_prob")


@dataclass
class Plan:
    """A run, before anything is built."""

    recipe: Recipe
    config: ModelConfig
    expdir: Path
    seed: int
    device: str
    checkpoint: Path | None = None  # where training goes on from …
    states: dict[str, Any] | None = None  # … and what it holds
    initial: dict[str, Any] | None = None  # Transformer, perhaps SpecHead: the weights a new run starts from (-i)
    started_from: dict[str, Any] | None = None  # which checkpoint these were, for as long as the run goes on


def make_plan(options: argparse.Namespace) -> Plan:
    """Puts everything together.

    Errors: SaatError for whatever the user got wrong.
    """
    config_values, args = parse_overrides(options.override)
    for name, value in args.items():
        setattr(options, name, value)
    if options.seed is not None and type(options.seed) is not int:
        raise SaatError(f"-o args.seed: '{options.seed}' is not a whole number")
    device = choose_device(options.device)
    expdir = None
    if options.expdir or options.expname:
        expdir = Path(str(options.expdir or f"result/pretrain/{options.expname}")).expanduser().resolve()

    past = options.past_exp
    if options.auto_resume and expdir is not None and experiment.checkpoints(expdir):
        past = str(expdir)
    if options.past_exp and options.init_ckpt:
        raise SaatError("-e goes on with a run and -i starts a new one: leave one of them out")
    if past:
        past = Path(past).expanduser().resolve()
        return _resumed(options, past, expdir, config_values, args.get("seed"), device)
    return _new(options, expdir, config_values, device)


def _new(options: argparse.Namespace, expdir: Path | None, overrides: dict, device: str) -> Plan:
    if not options.upstream:
        raise SaatError("no upstream: pass -u NAME, such as -u saat_ours")
    if expdir is None:
        raise SaatError("no experiment: pass -n NAME (its folder is result/pretrain/NAME) or -p FOLDER")
    found = list(experiment.checkpoints(expdir).values())
    if found:
        raise SaatError(
            f"{expdir} already holds checkpoints, up to {found[-1].name}: pass -a to go on with them, or another -n"
        )
    recipe, config = _asked_for(options, options.upstream, options.config or DEFAULT, overrides)
    seed = SEED if options.seed is None else options.seed
    initial, started_from = _initial(options.init_ckpt, config) if options.init_ckpt else (None, None)
    return Plan(recipe, config, expdir, seed, device, initial=initial, started_from=started_from)


def _initial(name: str, config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of `-i`, and what is kept about them. Errors: SaatError when they are of another model."""
    path = Path(name).expanduser().resolve()
    states = checkpoint.load(path)
    saved = states["Upstream_Config"].get("upstream")
    if saved != config.upstream:
        advice = "; saat init-from makes a saat_ours of a saat_qk or saat_q" if config.upstream == "saat_ours" else ""
        raise SaatError(f"-i {path} is a checkpoint of {saved}, not of {config.upstream}: pass -u {saved}{advice}")
    _refuse_misfit(path, checkpoint.check_model(states, str(path)), config, states)
    if "SpecHead" not in states:
        say(f"{path} has no prediction head (SpecHead): it starts from random weights")
    digest = published.file_sha256(published.weights_file(path))
    known = {"file": str(path), "sha256": digest, "step": states.get("Step")}
    if states.get("Made_From"):
        known["made_from"] = str(states["Made_From"])
    say(f"weights start from {path}, step {states.get('Step')}")
    return {part: states[part] for part in checkpoint.WEIGHTS if part in states}, known


def _refuse_misfit(path: Path, saved: ModelConfig, config: ModelConfig, states: dict[str, Any]) -> None:
    """Errors: SaatError that names what a model has to have in common with a checkpoint to start from its weights."""
    lines = differences(saved.to_dict(), config.to_dict())
    free = (*FREE, "transformer.initializer_range", "attention.")
    if not variant(config.upstream).attention.limited:
        free += ("transformer.max_length",)
    other = [line for line in lines if not line.startswith(free)]
    if "SpecHead" in states:
        other += [line for line in lines if line.startswith("task.target")]
    try:
        if not other:
            checkpoint.check_shapes(config, states["Transformer"], f"-i {path}")
    except SaatError:  # what is left that gives weights their shapes
        other = [line for line in lines if line.startswith("attention.")]
    if other:
        raise SaatError(
            f"-i {path} is of another model: {'; '.join(other)}. Pass the checkpoint's values "
            "(-o config.model.SECTION.KEY=VALUE), or take another checkpoint"
        )


def _asked_for(options: argparse.Namespace, upstream: str, name: str, overrides: dict) -> tuple[Recipe, ModelConfig]:
    """Recipe and model config as the command line alone says."""
    recipe = load_recipe(name)
    layers = [(recipe.model, f"{recipe_file(name)}, section model")]
    if options.upstream_config:
        layers.append((read_yaml(options.upstream_config), options.upstream_config))
    if options.corpus:
        recipe = merged(recipe, {"pretrain_expert": {"datarc": {"corpus": options.corpus}}}, "--corpus")
    recipe = merged(recipe, overrides, "-o")
    return recipe, model_config(upstream, *layers, (overrides.get("model"), "-o config.model"))


def _resumed(
    options: argparse.Namespace, past: Path, expdir: Path | None, overrides: dict, new_seed: int | None, device: str
) -> Plan:
    """Recipe, model config and seed come from the checkpoint; only -p, -n, --device and -o win.

    What the rest of the command line says must be the same where another model or other data would come of it.
    """
    path, states = experiment.newest(past) if past.is_dir() else (past, experiment.load(past))
    expdir = path.parent if expdir is None else expdir
    saved = dict(states["Upstream_Config"])
    if options.upstream not in (None, saved["upstream"]):
        raise SaatError(f"{path} is a checkpoint of {saved['upstream']}, not of {options.upstream}")
    # Nothing is overwritten silently. Newer checkpoints that `newest` passed over are damaged.
    for step, other in experiment.checkpoints(expdir).items():
        if expdir != path.parent or (step > states["Step"] and not past.is_dir()):
            raise SaatError(
                f"{expdir} holds {other.name}, which going on from {path} would mix with its own: pass another -n or -p"
            )
    recipe = merged(load_recipe(states["Config"], f"the recipe in {path}"), overrides, "-o")
    layers = ((saved, f"the config in {path}"), (overrides.get("model"), "-o config.model"))
    config = model_config(saved["upstream"], *layers)
    _refuse_other_model(path, saved, config.to_dict(), "-o")
    say(f"resuming from {path}: recipe, model config and seed come from it, but for -o")
    _compare(options, path, saved, recipe, config, overrides)
    seed = states["Args"].get("seed", SEED) if new_seed is None else new_seed
    if new_seed is None and options.seed not in (None, seed):
        raise SaatError(
            f"--seed {options.seed}: {path} was trained with {seed}; leave --seed out, or pass -o args.seed"
        )
    started_from = states["Args"].get("init_ckpt")
    if options.init_ckpt:
        began = f"from {started_from['file']}" if started_from else "from random weights"
        say(f"-i {options.init_ckpt} is not read: this run goes on, it once started {began}")
    return Plan(recipe, config, expdir, seed, device, path, states, started_from=started_from)


def _compare(
    options: argparse.Namespace, path: Path, saved: dict, recipe: Recipe, config: ModelConfig, overrides: dict
) -> None:
    """Errors: SaatError where -c, -g or --corpus say another model or corpus than the checkpoint's."""
    if options.corpus:
        asked = merged(Recipe(), {"pretrain_expert": {"datarc": {"corpus": options.corpus}}}, "--corpus").datarc.corpus
        if asked != recipe.datarc.corpus:
            raise SaatError(
                f"--corpus {' '.join(asked)}: {path} was trained on {' '.join(recipe.datarc.corpus)}; to go on with "
                "other audio, or where it lies elsewhere now, pass -o config.pretrain_expert.datarc.corpus=[FOLDER, …]"
            )
    if options.config:
        other_recipe, other = _asked_for(options, saved["upstream"], options.config, overrides)
        _refuse_other_model(path, config.to_dict(), other.to_dict(), "-c, -g and -o")
        same = {"model": {}, "pretrain_expert": {}}  # the model was compared; the data has --corpus
        ignored = differences({**recipe.to_dict(), **same}, {**other_recipe.to_dict(), **same})
        if ignored:
            say(f"not from -c {options.config}, since only -o changes them: {'; '.join(ignored)}")
    elif options.upstream_config:
        layers = ((config.to_dict(), str(path)), (read_yaml(options.upstream_config), options.upstream_config))
        other = model_config(saved["upstream"], *layers)
        _refuse_other_model(path, config.to_dict(), other.to_dict(), "-g")


def _refuse_other_model(path: Path, before: dict, now: dict, flags: str) -> None:
    other = [line for line in differences(before, now) if not line.startswith(FREE)]
    if other:
        raise SaatError(
            f"{flags}: another model than that of {path}: {'; '.join(other)}. Repeat what the first command said, or "
            "leave it out, or start a new experiment with another -n"
        )
