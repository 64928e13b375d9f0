"""The command `saat`."""

import argparse
import json
import sys

from saat import __version__
from saat.errors import SaatError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("saat", description="S3PRL upstreams that compare attention in an Audio ALBERT.")
    p.add_argument("--version", action="version", version=f"saat {__version__}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="pre-train and probe on a small synthetic corpus: minutes on a CPU")
    demo.add_argument(
        "--out", default="result/demo", metavar="DIR", help="where everything goes (default: %(default)s)"
    )
    listing = commands.add_parser("list", help="the upstreams: paper row, complexity, capabilities")
    listing.add_argument("--json", action="store_true", help="as a list of objects")
    run = commands.add_parser("run", help="run a script with the upstreams and probes registered in S3PRL")
    run.add_argument("script", help="a Python file, such as a lab's own run_downstream.py")
    run.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    return p


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 after an error of the user's, 130 after Ctrl-C."""
    options = parser().parse_args(argv)
    try:
        if options.command == "demo":
            from saat.demo.run import run_demo

            run_demo(options.out)
        elif options.command == "list":
            from saat.upstream.listing import as_table, describe_all

            entries = describe_all()
            print(json.dumps(entries, indent=1) if options.json else as_table(entries))
        else:
            from saat.run import run_script

            run_script(options.script, options.args)
    except SaatError as error:
        print(f"saat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saat: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
