"""Registration with S3PRL: its hub gets our upstreams, its downstream package gets our probes."""

import importlib
from pathlib import Path

from saat import compat


def register() -> None:
    """Add the upstream entries, and those of the store's checkpoints, to `s3prl.hub`, and our folder to
    `s3prl.downstream.__path__`. Idempotent; a second time it finds what has been published since."""
    compat.apply()
    import s3prl.downstream

    import saat.downstream
    from saat.upstream import hubconf

    # Not `s3prl.hub`: while that module is being imported (saat/autoload.py), s3prl has no such attribute.
    hub = importlib.import_module("s3prl.hub")
    for name in hubconf.__all__:
        setattr(hub, name, getattr(hubconf, name))
    for name, entry in hubconf.store_entries().items():
        setattr(hub, name, entry)

    # S3PRL's runner imports `s3prl.downstream.<-d>.expert`; S3PRL's own tasks keep their place in front.
    folder = str(Path(saat.downstream.__file__).parent)
    if folder not in s3prl.downstream.__path__:
        s3prl.downstream.__path__.append(folder)
