"""saat: S3PRL upstreams that compare 13 attention variants in one Audio ALBERT (arXiv 2006.05174).

`saat.register()` adds the upstreams `saat_mel`, `saat_qk`, `saat_ours`, … to S3PRL's hub and the four probes to
its downstream tasks; no file of S3PRL is edited.
"""

from pathlib import Path

__version__ = "0.1.0"

__all__ = ["__version__", "register"]

# In an installed package the rooms (`saat.upstream`, `saat.pretrain`, …) lie inside this folder; in a bare checkout
# they lie beside it.
_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "upstream").is_dir() and (_checkout / "upstream").is_dir():
    __path__.append(str(_checkout))


def register() -> None:
    """Make the upstreams and probes known to S3PRL, in this process. Calling it again changes nothing."""
    from saat.plugin import register as _register

    _register()
