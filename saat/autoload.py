"""`saat autoload on`: in every program of this Python environment, S3PRL knows our upstreams and probes.

A file in site-packages makes Python import this module when it starts. That alone loads nothing: it waits until a
program imports `s3prl.hub` (ESPnet does, for `frontend_conf: upstream: saat_ours`), and registers then.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

HUB = "s3prl.hub"
FILE = "saat_autoload.pth"
LINE = "import importlib.util; importlib.util.find_spec('saat') and __import__('saat.autoload').autoload.install()\n"


class _AfterImport(importlib.abc.Loader):
    """S3PRL's own loader of the hub, then registration."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from saat import compat, plugin

        compat.apply()
        self.loader.exec_module(module)
        try:
            plugin.register()
        except Exception as error:  # a program that has nothing to do with us must not fail because of us
            print(f"saat autoload: S3PRL does not know our upstreams: {error!r}", file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    """Sees the first import of the hub, and no other."""

    def find_spec(self, name, path=None, target=None):
        if name != HUB:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(HUB)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterImport(spec.loader)
        return spec


def install() -> None:
    """What runs when Python starts: no import, no output."""
    if HUB not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def switch(on: bool) -> str:
    """Write or remove the file in this environment's site-packages; returns what was done.

    Errors: SaatError when that folder cannot be written.
    """
    import sysconfig
    from pathlib import Path

    from saat.errors import SaatError

    path = Path(sysconfig.get_paths()["purelib"]) / FILE
    try:
        if on:
            path.write_text(LINE, encoding="utf-8")
            return (
                f"wrote {path}: every program of this environment that imports s3prl.hub now finds saat_*; "
                "`saat autoload off` takes it back"
            )
        there = path.exists()
        path.unlink(missing_ok=True)
        return f"removed {path}" if there else f"autoload is off: there is no {path}"
    except OSError as error:
        raise SaatError(f"cannot change {path}: {error}") from error
