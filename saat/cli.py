"""The command `saat`."""

import argparse
import json
import sys

from saat import __version__, superb
from saat.errors import SaatError
from saat.sharing.commands import add_commands


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
    superb.add_command(commands)
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


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 after an error of the user's, 130 after Ctrl-C."""
    options = parser().parse_args(argv)
    try:
        options.call(options)
    except SaatError as error:
        print(f"saat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saat: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
