"""The command `saat`."""

import argparse
import json
import sys

from saat import __version__
from saat.analysis import heads_command, init_from_command
from saat.analysis.study import command as study
from saat.downstream import command as probe
from saat.errors import SaatError
from saat.pretrain.stop import Interrupted
from saat.sharing.commands import add_commands
from saat.superb import command as superb


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("saat", description="S3PRL upstreams that compare attention in an Audio ALBERT.")
    p.add_argument("--version", action="version", version=f"saat {__version__}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="pre-train and probe on a small synthetic corpus: minutes on a CPU")
    demo.add_argument(
        "--out", default="result/demo", metavar="DIR", help="where everything goes (default: %(default)s)"
    )
    demo.set_defaults(call=_demo)
    listing = commands.add_parser("list", help="the upstreams; with --store, the published checkpoints")
    listing.add_argument("--json", action="store_true", help="as a list of objects")
    listing.add_argument(
        "--store", nargs="?", const="", metavar="FOLDER", help="list a store: FOLDER, or the one -u looks in"
    )
    listing.set_defaults(call=_list)
    bench = commands.add_parser("bench", help="time the upstreams and their peers, in turn")
    bench.add_argument("--upstreams", nargs="+", metavar="NAME", help="default: all 13 and peers; saat_ours_int8 …")
    bench.add_argument("--length", nargs="+", type=int, default=[500], help="tokens; several for the scaling")
    bench.add_argument("--batch", type=int, default=4)
    bench.add_argument("--hidden", type=int, default=768, help="hidden size, a multiple of 12 (default: %(default)s)")
    bench.add_argument("--train", action="store_true", help="a step of pre-training instead of inference")
    bench.add_argument("--ragged", action="store_true", help="utterances of different lengths")
    bench.add_argument(
        "--end-to-end", action="store_true", help="waveforms to hidden states, with S3PRL's features: tokens of 10 ms"
    )
    bench.add_argument("--corpus", metavar="FOLDER", help="real speech; noise without")
    bench.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 (default: %(default)s)")
    bench.add_argument("--device", help="default: cuda where there is one, else cpu")
    bench.add_argument("--threads", type=int, help="of the CPU (default: torch's, which OMP_NUM_THREADS sets)")
    bench.add_argument("--rounds", type=int, default=10, help="after one to warm up (default: %(default)s)")
    bench.add_argument("--json", metavar="FILE", help="a list of objects, one a subject and length")
    bench.add_argument("--plot", metavar="FILE", help="an image: scaling, or the ratios at one length")
    bench.set_defaults(call=_bench)
    commands.add_parser("pretrain", help="what run_pretrain.py does, from any directory")  # see main
    run = commands.add_parser("run", help="run a script with the upstreams and probes registered in S3PRL")
    run.add_argument("script", help="a Python file, such as a lab's own run_downstream.py")
    run.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    run.set_defaults(call=_run)
    add_commands(commands)
    for name, text in (
        ("link", "add our variants to the pre-training script of a checkout of S3PRL"),
        ("unlink", "take away what link added"),
    ):
        linking = commands.add_parser(name, help=text)
        linking.add_argument("checkout", help="the folder of S3PRL")
        linking.set_defaults(call=_link)
    autoload = commands.add_parser("autoload", help="register in every program of this Python environment")
    autoload.add_argument("state", choices=["on", "off"], help="off takes it back")
    autoload.set_defaults(call=_autoload)
    probe.add_command(commands)
    superb.add_command(commands)
    heads_command.add_command(commands)
    init_from_command.add_command(commands)
    study.add_commands(commands)
    return p


def _demo(options: argparse.Namespace) -> None:
    from saat.demo.run import run_demo

    run_demo(options.out)


def _list(options: argparse.Namespace) -> None:
    if options.store is not None:
        from saat.sharing import actions
        from saat.sharing.store import store_folder

        entries = actions.listing(options.store or None)
        print(json.dumps(entries, indent=1) if options.json else actions.as_table(entries, store_folder(options.store)))
        return
    from saat.upstream.listing import as_table, describe_all

    entries = describe_all()
    print(json.dumps(entries, indent=1) if options.json else as_table(entries))


def _run(options: argparse.Namespace) -> None:
    from saat.run import run_script

    run_script(options.script, options.args)


def _link(options: argparse.Namespace) -> None:
    from saat import link

    folders = getattr(link, options.command)(options.checkout)
    print("\n".join(map(str, folders)) if folders else "nothing was linked there")


def _autoload(options: argparse.Namespace) -> None:
    from saat.autoload import switch

    print(switch(options.state == "on"))


def _bench(options: argparse.Namespace) -> None:
    from saat.analysis.bench_command import run

    run(options)


def pretrain(argv: list[str]) -> int:
    """`saat pretrain`: the flags and exit codes of run_pretrain.py."""
    from saat.pretrain.cli import main

    return main(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 after an error of the user's, 130 after Ctrl-C, 128 + the signal's number after another signal."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["pretrain"]:  # argparse would take its first flags for its own
        return pretrain(argv[1:])
    options = parser().parse_args(argv)
    try:
        options.call(options)
    except SaatError as error:
        print(f"saat: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"saat: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("saat: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
