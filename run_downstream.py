"""S3PRL's run_downstream.py with our upstreams and probes; see saat/run_downstream.py for what it fills in."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("saat") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from saat.run_downstream import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
