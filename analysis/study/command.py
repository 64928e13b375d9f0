"""The commands `saat study` and `saat report`."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from saat.errors import SaatError

HELP = "pre-train, probe, time and draw every variant: the paper's tables and figures"


def add_commands(commands: Any) -> None:
    """`saat study` and `saat report`."""
    p = commands.add_parser("study", help=HELP)
    p.add_argument("--corpus", nargs="+", metavar="PATH", help="folders of audio; sets the next three")
    p.add_argument("--pretrain", nargs="+", metavar="PATH", help="to pre-train on")
    p.add_argument("--speaker", nargs="+", metavar="PATH", help="to probe speakers on, in LibriSpeech's layout")
    p.add_argument("--phoneme", nargs="+", metavar="PATH", help="to probe phonemes on, in LibriSpeech's layout")
    p.add_argument("--phones", metavar="PATH", help="phone labels; without, the phoneme probes are left out")
    p.add_argument("--splits", metavar="DIR", help="with train_split.txt, test_split.txt (default: drawn)")
    p.add_argument("--test-other", nargs="+", default=[], metavar="PATH", help="speakers no other corpus has")
    p.add_argument("--recipe", default="mini", help="mini, paper, or a YAML file (default: %(default)s)")
    p.add_argument("--out", required=True, metavar="DIR", help="a study goes on where its folder stopped")
    p.add_argument("-u", "--upstreams", nargs="+", metavar="NAME", help="default: all, and ours with other starts")
    p.add_argument("--seeds", type=int, default=1, help="pre-trainings of each (default: %(default)s)")
    p.add_argument("--jobs", type=int, default=1, help="steps at once (default: %(default)s)")
    p.add_argument("--curves", type=int, default=0, metavar="STEPS", help="learning curves of qk, q and ours as well")
    p.add_argument("--probe-steps", type=int, help="of the probes on tokens (default: those of saat probe)")
    p.add_argument("--probe-batch", type=int, help="utterances in such a step (default: that of saat probe)")
    p.add_argument("--features", metavar="DIR", help="its own folder, with room for --jobs of them (default: in --out)")
    p.add_argument("--dtype", choices=("float16", "float32"), help="of those features (default: that of saat probe)")
    p.add_argument("--bench-length", type=int, default=500, help="tokens (default: %(default)s)")
    p.add_argument("--bench-hidden", type=int, default=768, help="hidden size timed (default: %(default)s)")
    p.add_argument("--bench-rounds", type=int, default=5, help="default: %(default)s")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    p.set_defaults(call=_study)
    p = commands.add_parser("report", help="tables, figures and report of a study, finished or not")
    p.add_argument("out", metavar="DIR", help="the study's --out")
    p.set_defaults(call=_report)


def _paths(values: list[str]) -> list[str]:
    return [str(Path(value).expanduser().resolve()) for value in values]


def _study(o: Any) -> None:
    from saat.analysis.study import run
    from saat.analysis.study.options import Corpora, Options, check_corpora, open_folder
    from saat.analysis.study.steps import plan, write_utterances
    from saat.analysis.study.write import write

    given = {}
    for name in ("pretrain", "speaker", "phoneme", "test_other"):
        own = getattr(o, name)
        paths = own if own or name == "test_other" else o.corpus
        if paths is None:
            raise SaatError(f"no audio to work with: pass --corpus PATH, or --{name} PATH as well")
        for path in paths:
            if not Path(path).expanduser().is_dir():
                option = name.replace("_", "-") if own else "corpus"
                raise SaatError(f"--{option}: no such folder: {path}")
        given[name] = _paths(paths)
    for name in ("seeds", "jobs", "bench_length", "bench_hidden", "bench_rounds", "probe_steps", "probe_batch"):
        if getattr(o, name) is not None and getattr(o, name) < 1:
            raise SaatError(f"--{name.replace('_', '-')} must be at least 1")
    if o.curves < 0:
        raise SaatError("--curves is a number of steps, or 0 for none")
    for name in ("phones", "splits"):
        value = getattr(o, name)
        if value and not Path(value).expanduser().exists():
            raise SaatError(f"--{name}: nothing at {value}")
        given[name] = _paths([value])[0] if value else None
    recipe = o.recipe if not Path(o.recipe).expanduser().is_file() else _paths([o.recipe])[0]
    options = Options(
        corpora=Corpora(**given),
        recipe=recipe,
        out=Path(o.out).expanduser().resolve(),
        upstreams=o.upstreams,
        seeds=o.seeds,
        jobs=o.jobs,
        curves=o.curves,
        bench_length=o.bench_length,
        bench_hidden=o.bench_hidden,
        bench_rounds=o.bench_rounds,
        probe_steps=o.probe_steps,
        probe_batch=o.probe_batch,
        features=Path(o.features).expanduser().resolve() if o.features else None,
        dtype=o.dtype,
        device=o.device,
    )
    steps = plan(options)
    check_corpora(options)
    open_folder(options)
    with run.only_one(options.out):
        write_utterances(options)
        if not options.corpora.phones:
            print("no --phones: the phoneme probes are left out, and so is --test-other, which is for them")
        runner = run.Runner(options.out, options.jobs)
        todo = [step.name for step in steps if not runner.is_done(step.name)]
        print(
            f"{len(steps)} steps, {len(todo)} to do, {options.jobs} at once; what each prints is in {options.out}/logs"
        )
        try:
            runner.run(steps)
        except BaseException:
            with suppress(SaatError):  # such as that nothing has been probed yet: not what went wrong
                print("\n".join(map(str, write(options.out))))
            raise
        print("\n".join(map(str, write(options.out))))


def _report(o: Any) -> None:
    from saat.analysis.study.write import write

    print("\n".join(map(str, write(Path(o.out).expanduser().resolve()))))
