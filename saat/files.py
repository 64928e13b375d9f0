"""Writing files so that nobody ever reads half of one."""

import contextlib
import os
from pathlib import Path

from saat.errors import SaatError


def free(out: str | Path, force: bool) -> Path:
    """`out`, where a file may be written. Errors: SaatError when one is there and may not be overwritten (`force`)."""
    out = Path(out).expanduser()
    if out.exists() and not force:
        raise SaatError(f"{out} is there already: choose another name, or pass --force to overwrite it")
    return out


def write_text(path: Path, text: str) -> None:
    """Makes the folder where needed. Atomic: whoever reads `path` sees all of it or what was there before.

    Errors: SaatError when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise SaatError(f"cannot write {path}: {error}") from error
