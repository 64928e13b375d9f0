"""Where files that can be made again are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SAAT_CACHE if that is set, else the user's cache folder."""
    if os.environ.get("SAAT_CACHE"):
        return Path(os.environ["SAAT_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("saat")
