"""`run_downstream.py`: S3PRL's own, with our upstreams and probes registered and the gaps in the command line filled.

Where the command line is silent: `-c` is the packaged config of our probe, `-s` is last_hidden_state (the paper's),
and `--device` is cpu where there is no CUDA. Everything else, and all that follows, is S3PRL's.
"""

import argparse
import builtins
import inspect
import re
import sys
import zipfile
from pathlib import Path

from saat.errors import SaatError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run S3PRL's downstream runner.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns: 0, or 2 after an error the user can mend, which is printed in one line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    import saat

    saat.register()
    from s3prl import run_downstream

    own_argv, own_isinstance = sys.argv, builtins.isinstance
    try:
        sys.argv = [own_argv[0], *fill_in(argv)]
        run_downstream.main()
    except SaatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        # S3PRL replaces builtins.isinstance (for DDP in torch < 1.8) and never puts it back.
        sys.argv, builtins.isinstance = own_argv, own_isinstance
    return 0


def fill_in(argv: list[str]) -> list[str]:
    """The command line with its gaps filled.

    Defaults go in front: of an option given twice, argparse takes the last.

    Errors: SaatError for an unknown upstream or downstream, or a file that is not there.
    """
    import torch

    given = _parse(argv)
    defaults = [] if torch.cuda.is_available() else ["--device", "cpu"]
    if given.help:
        return argv
    if given.past_exp is not None:
        _check_past(Path(given.past_exp))
        _check_override(given.override)
        return defaults + argv
    _check_names(given)
    _check_files(given)
    _check_override(given.override)
    packaged = packaged_config(given.downstream)
    if packaged is not None:
        defaults += ["-c", str(packaged)]
    return [*defaults, "-s", "last_hidden_state", *argv]


def packaged_config(probe: str) -> Path | None:
    """The config.yaml that comes with one of our probes; None for S3PRL's own tasks."""
    from saat import downstream
    from saat.downstream.probe import PROBES

    return Path(downstream.__file__).parent / probe / "config.yaml" if probe in PROBES else None


def _parse(argv: list[str]) -> argparse.Namespace:
    """What of S3PRL's command line matters here; its own parser comes later, and complains where it must."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-d", "--downstream")
    parser.add_argument("-u", "--upstream")
    parser.add_argument("-k", "--upstream_ckpt")
    parser.add_argument("-g", "--upstream_model_config")
    parser.add_argument("-c", "--config")
    parser.add_argument("-o", "--override")
    parser.add_argument("-e", "--past_exp")
    parser.add_argument("-i", "--init_ckpt")
    parser.add_argument("--hub", default="torch")
    # Flags, so that `-fu NAME` is read as S3PRL reads it.
    for short, name in (("-r", "--upstream_refresh"), ("-f", "--upstream_trainable"), ("-a", "--auto_resume")):
        parser.add_argument(short, name, action="store_true")
    return parser.parse_known_args(argv)[0]


def _check_names(given: argparse.Namespace) -> None:
    import s3prl.downstream
    from s3prl import hub

    tasks = {path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py")}
    if given.downstream is None:
        raise SaatError("no downstream task: pass -d, one of " + ", ".join(sorted(_ours())))
    if given.downstream not in tasks:
        raise SaatError(f"unknown downstream '{given.downstream}': {did_you_mean(given.downstream, tasks)}")
    if given.hub != "torch":
        return  # -u is a repository of the Hugging Face hub
    # S3PRL's own list (`hub.options`) is of its module's globals, and registration adds ours to them.
    if given.upstream is None:
        raise SaatError("no upstream: pass -u, such as saat_ours, or saat_ours_local with -k FILE")
    if given.upstream not in hub.options():
        raise SaatError(f"unknown upstream '{given.upstream}': {did_you_mean(given.upstream, hub.options())}")


def _ours() -> list[str]:
    from saat.downstream.probe import PROBES

    return list(PROBES)


def _check_files(given: argparse.Namespace) -> None:
    for flag, value in (("-c", given.config), ("-g", given.upstream_model_config), ("-i", given.init_ckpt)):
        if value is not None and not Path(value).is_file():
            raise SaatError(f"{flag}: no such file: {value}")
    ckpt = given.upstream_ckpt
    # Other upstreams take addresses and Google Drive ids here, too.
    is_file = given.upstream.startswith("saat_") and not given.upstream.endswith("_url")
    if ckpt is not None and is_file and not Path(ckpt).exists():
        raise SaatError(f"-k: no checkpoint at {ckpt}; pass a states-N.ckpt written by run_pretrain.py")


def _check_override(text: str | None) -> None:
    """-o is `args.NAME=VALUE` or `config.SECTION.KEY=VALUE`, joined by `,,`; the experts check what config holds."""
    from s3prl import run_downstream

    if text is None or text.lower() == "none":
        return
    # S3PRL makes any name an argument. Its parser cannot be had without running it, but its options can be read.
    known = re.findall(r"'--(\w+)'", inspect.getsource(run_downstream.get_downstream_args))
    for option in text.split(",,"):
        field, _, name = option.strip().partition("=")[0].strip().partition(".")
        if option.count("=") != 1 or field not in ("args", "config") or not name:
            raise SaatError(f"-o: '{option.strip()}' is neither args.NAME=VALUE nor config.SECTION.KEY=VALUE")
        if field == "args" and name not in known:
            raise SaatError(f"-o: no argument '{name}': {did_you_mean(name, known)}")


def _check_past(path: Path) -> None:
    """What -e names must be there, or S3PRL fails without saying why."""
    if path.is_dir():
        if not list(path.glob("states-*.ckpt")):
            raise SaatError(f"-e: no states-N.ckpt in {path}; name a checkpoint, or an experiment that saved one")
    elif not path.is_file():
        raise SaatError(f"-e: no such checkpoint or folder: {path}")
    elif not zipfile.is_zipfile(path):
        raise SaatError(f"-e: {path} is not a checkpoint, or a truncated one")


if __name__ == "__main__":
    sys.exit(main())
