"""The command `run_pretrain.py`: S3PRL's flags and meanings."""

import argparse
import os
import sys
from pathlib import Path

import torch

from saat import configs
from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.distributed import World, join
from saat.pretrain.download import download, part_folders
from saat.pretrain.loop import Trainer
from saat.pretrain.plan import SEED, Plan, make_plan
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import DEFAULT
from saat.pretrain.stop import Interrupted


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
    p.add_argument("-i", "--init_ckpt", metavar="CKPT", help="a new run, whose weights start from this checkpoint's")
    p.add_argument("-a", "--auto_resume", action="store_true", help="resume where the folder has checkpoints")
    p.add_argument("--seed", type=int, help=f"default {SEED}")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    return p


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
    with join(plan.device) as world:
        with world.first():
            download(parts, progress and world.is_main)
        return _run(plan, options, argv, world, progress)


def _run(plan: Plan, options: argparse.Namespace, argv: list[str], world: World, progress: bool) -> Path:
    recipe, runner = plan.recipe, plan.recipe.runner
    datarc = recipe.datarc
    start = plan.states["Step"] if plan.states else 0
    if world.sum(start)[0] != start * world.size:
        raise SaatError(f"the processes do not see the same checkpoints in {plan.expdir}: is it on a shared disk?")
    with world.first():
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
            share=(world.rank, world.size),
            precision=runner.precision,
            skipped_file=plan.expdir / "skipped.txt" if world.is_main else None,
        ).to(plan.device)
    if plan.initial:
        expert.load_model({"SpecHead": expert.model.SpecHead.state_dict(), **plan.initial})
    expert.model.Transformer.recompute = runner.recompute
    if runner.compile:
        expert.model.Transformer.compile(dynamic=True)  # in place: the names of its weights stay as they are
    args = {
        **vars(options),
        "upstream": plan.config.upstream,
        "expdir": str(plan.expdir),
        "seed": plan.seed,
        "init_ckpt": plan.started_from,
    }
    trainer = Trainer(expert, recipe, plan.expdir, args, plan.states, world)
    if trainer.step >= trainer.total_steps:
        print(f"{plan.checkpoint} is at step {trainer.step} of {trainer.total_steps}: nothing left to do")
        return plan.checkpoint
    if world.is_main:
        _announce(plan, trainer, argv)
    world.wait()  # until the folder is there
    return trainer.train(progress)


def _announce(plan: Plan, trainer: Trainer, argv: list[str]) -> None:
    """Prepares the folder, and prints what is about to happen."""
    expert, processes = trainer.expert, trainer.world.size
    utterances, hours = len(expert.corpus.paths), expert.corpus.hours
    padding = expert.crops.padding_share(trainer.step * expert.crops.total_batch // utterances)
    data = {"utterances": utterances, "hours": hours, "fingerprint": trainer.fingerprint, "padding": padding}
    start = {"command": argv, "device": plan.device, "processes": processes, "corpus": data}
    if plan.started_from:
        start["init_ckpt"] = plan.started_from
    experiment.prepare(plan.expdir, plan.recipe, plan.config, trainer.step, start)
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    where = f"{processes} processes, each on {plan.device}" if processes > 1 else f"on {plan.device}"
    print(
        f"{plan.config.upstream}: {parameters / 1e6:.2f} M parameters; {utterances} utterances, {hours:.2f} h; "
        f"steps {trainer.step + 1} to {trainer.total_steps} of {expert.crops.total_batch} crops, "
        f"{padding:.1%} padding, {where} with {torch.get_num_threads()} threads; in {plan.expdir}"
    )


def main(argv: list[str] | None = None) -> int:
    """The command: its exit code is 0, 2 after an error of the user's, 128 + the signal's number after a signal."""
    # Under torchrun the lines of all processes end up in one place.
    name = f"run_pretrain.py, rank {os.environ['RANK']}" if "RANK" in os.environ else "run_pretrain.py"
    try:
        path = pretrain(sys.argv[1:] if argv is None else argv)
    except SaatError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was saved before can be gone on with by -a", file=sys.stderr)
        return 130
    print(path)
    return 0
