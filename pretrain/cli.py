"""The command `run_pretrain.py`: S3PRL's flags and meanings."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saat import configs
from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.device import choose_device
from saat.pretrain.download import download, part_folders
from saat.pretrain.loop import Interrupted, Trainer
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import DEFAULT, Recipe, load_recipe, merged, parse_overrides, recipe_file
from saat.upstream.config import ModelConfig, model_config, read_yaml

SEED = 1337


@dataclass
class Plan:
    """What is to be done, once command line, recipe, overrides and checkpoint have been put together."""

    recipe: Recipe
    config: ModelConfig
    expdir: Path
    seed: int
    device: str
    checkpoint: Path | None = None  # where training goes on from …
    states: dict[str, Any] | None = None  # … and what it holds


def parser() -> argparse.ArgumentParser:
    """The flags, S3PRL's; `--corpus` is ours."""
    recipes = ", ".join(configs.names("pretrain"))
    p = argparse.ArgumentParser("run_pretrain.py", description="Pre-train an upstream by masked acoustic modelling.")
    p.add_argument("-u", "--upstream", help="the variant, such as saat_ours")
    p.add_argument("-n", "--expname", help="name of the experiment: its folder is result/pretrain/NAME")
    p.add_argument("-p", "--expdir", help="folder of the experiment, instead of -n")
    p.add_argument("-c", "--config", help=f"recipe: one of {recipes}, or a YAML file (default: {DEFAULT})")
    p.add_argument("-g", "--upstream_config", help="YAML file of the model's config, over the recipe's own")
    p.add_argument(
        "--corpus", nargs="+", metavar="PATH", help="folders, .csv, .txt; sets config.pretrain_expert.datarc.corpus"
    )
    p.add_argument(
        "--download", nargs="+", metavar="PART", help="fetch parts of LibriSpeech, such as dev-clean, as corpus"
    )
    p.add_argument("--download-dir", metavar="FOLDER", help="where to (default: the user's cache folder)")
    p.add_argument("-o", "--override", help='"config.optimizer.lr=1e-3,,args.seed=3": highest priority')
    p.add_argument("-e", "--past_exp", metavar="CKPT", help="resume from a checkpoint, or from a folder's newest")
    p.add_argument("-a", "--auto_resume", action="store_true", help="resume where the folder has checkpoints")
    p.add_argument("--seed", type=int, help=f"default {SEED}")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    return p


def make_plan(options: argparse.Namespace) -> Plan:
    """Puts everything together; reads files, writes none.

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
    if past:
        past = Path(past).expanduser().resolve()
        return _resumed(options, past, expdir, config_values, args.get("seed"), device)
    return _new(options, expdir, config_values, device)


def _new(options: argparse.Namespace, expdir: Path | None, overrides: dict, device: str) -> Plan:
    if not options.upstream:
        raise SaatError("no upstream: pass -u NAME, such as -u saat_ours")
    if expdir is None:
        raise SaatError("no experiment: pass -n NAME (its folder is result/pretrain/NAME) or -p FOLDER")
    name = options.config or DEFAULT
    found = list(experiment.checkpoints(expdir).values())
    if found:
        raise SaatError(
            f"{expdir} already holds checkpoints, up to {found[-1].name}: pass -a to go on with them, or another -n"
        )
    recipe = load_recipe(name)
    layers = [(recipe.model, f"{recipe_file(name)}, section model")]
    if options.upstream_config:
        layers.append((read_yaml(options.upstream_config), options.upstream_config))
    if options.corpus:
        recipe = merged(recipe, {"pretrain_expert": {"datarc": {"corpus": options.corpus}}}, "--corpus")
    recipe = merged(recipe, overrides, "-o")
    config = model_config(options.upstream, *layers, (overrides.get("model"), "-o config.model"))
    seed = SEED if options.seed is None else options.seed
    return Plan(recipe, config, expdir, seed, device)


def _resumed(
    options: argparse.Namespace, past: Path, expdir: Path | None, overrides: dict, new_seed: int | None, device: str
) -> Plan:
    """Recipe, model config and seed come from the checkpoint; only -p, -n, --device and -o win."""
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
    given = {
        "-c": options.config,
        "-g": options.upstream_config,
        "--corpus": options.corpus,
        "--seed": None if new_seed is not None else options.seed,
    }
    ignored = [flag for flag, value in given.items() if value is not None]
    instead = f", not from {' '.join(ignored)}" if ignored else ""
    print(f"resuming from {path}: recipe, model config and seed come from it{instead}")
    recipe = merged(load_recipe(states["Config"], f"the recipe in {path}"), overrides, "-o")
    layers = ((saved, f"the config in {path}"), (overrides.get("model"), "-o config.model"))
    config = model_config(saved["upstream"], *layers)
    seed = states["Args"].get("seed", SEED) if new_seed is None else new_seed
    return Plan(recipe, config, expdir, seed, device, path, states)


def pretrain(argv: list[str], progress: bool = True) -> Path:
    """What `run_pretrain.py` does.

    Args:
        argv: its flags.
        progress: draw progress bars.

    Returns:
        The last checkpoint.

    Errors: SaatError for whatever the user got wrong; Interrupted after a signal, when everything is saved.
    """
    options = parser().parse_args(argv)
    parts = part_folders(options.download or [], options.download_dir)
    if parts:
        options.corpus = [*(options.corpus or []), *map(str, parts)]
    plan = make_plan(options)
    download(parts, progress)
    recipe, runner = plan.recipe, plan.recipe.runner
    datarc = recipe.datarc
    if datarc.demo_corpus and not datarc.corpus:
        from saat.demo.corpus import make_corpus

        root = make_corpus(progress=progress)
        datarc = recipe.with_datarc(corpus=[str(root / "train")], splits=str(root / "alignments")).datarc
    expert = UpstreamPretrainExpert(
        datarc,
        plan.config,
        plan.device,
        seed=plan.seed,
        accumulate=runner.gradient_accumulate_steps,
        skipped_file=plan.expdir / "skipped.txt",
    ).to(plan.device)
    args = {**vars(options), "upstream": plan.config.upstream, "expdir": str(plan.expdir), "seed": plan.seed}
    trainer = Trainer(expert, recipe, plan.expdir, args, plan.states)
    if trainer.step >= trainer.total_steps:
        print(f"{plan.checkpoint} is at step {trainer.step} of {trainer.total_steps}: nothing left to do")
        return plan.checkpoint
    experiment.prepare(plan.expdir, recipe, plan.config, argv, plan.device, trainer.step)
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    print(
        f"{plan.config.upstream}: {parameters / 1e6:.2f} M parameters; {len(expert.corpus.paths)} utterances, "
        f"{expert.corpus.hours:.2f} h; steps {trainer.step + 1} to {trainer.total_steps} of {expert.crops.total_batch} "
        f"crops, on {plan.device} with {torch.get_num_threads()} threads; in {plan.expdir}"
    )
    return trainer.train(progress)


def main(argv: list[str] | None = None) -> int:
    """The command: its exit code is 0, 2 after an error of the user's, 128 + the signal's number after a signal."""
    try:
        path = pretrain(sys.argv[1:] if argv is None else argv)
    except SaatError as error:
        print(f"run_pretrain.py: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"run_pretrain.py: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("run_pretrain.py: interrupted; what was saved before can be gone on with by -a", file=sys.stderr)
        return 130
    print(path)
    return 0
