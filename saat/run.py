"""`saat run SCRIPT ARGS…`: run a script in a process where S3PRL knows our upstreams and probes."""

import runpy
import sys
from pathlib import Path

from saat.errors import SaatError


def run_script(script: str | Path, args: list[str]) -> None:
    """Register, then run `script` as Python would: as `__main__`, its folder first on sys.path, its own arguments.

    Nothing else is changed; a lab's own checkout of S3PRL runs untouched. Where the script lies in such a checkout, it
    is that S3PRL which is registered with, and used.

    Args:
        script: a Python file.
        args: what follows it on the command line.

    Errors: SaatError when there is no such file; whatever the script raises.
    """
    path = Path(script).expanduser()
    if not path.is_file():
        raise SaatError(f"saat run: no such script: {script}")
    folder = path.resolve().parent
    first = [str(folder)]
    if folder.name == "s3prl" and (folder / "__init__.py").is_file():
        # <checkout>/s3prl/run_downstream.py imports `s3prl`, which the checkout's own folder holds.
        first.append(str(folder.parent))
    argv, search = sys.argv, list(sys.path)
    try:
        sys.argv = [str(script), *args]
        sys.path[:0] = first
        import saat

        saat.register()
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, search
