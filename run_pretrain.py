"""Pre-training, with S3PRL's flags: `python run_pretrain.py -u saat_ours -n NAME --corpus FOLDER`; -h lists them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from saat.pretrain.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
