"""The command `saat superb`."""

import re
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.superb.runs import Settings
from saat.superb.search import as_markdown, run_superb
from saat.superb.tasks import RATES, TASKS


def add_command(commands: Any) -> None:
    """`saat superb`."""
    p = commands.add_parser("superb", help="S3PRL's SUPERB tasks on an upstream, into one table")
    p.add_argument("--s3prl", required=True, metavar="CHECKOUT", help="the folder of S3PRL's sources")
    p.add_argument("-u", "--upstream", required=True)
    p.add_argument("-k", "--ckpt", help="default: the store's, for saat_*")
    p.add_argument("--tasks", default=",".join(TASKS), help="default: %(default)s")
    p.add_argument("--data", required=True, metavar="FILE", help="YAML: for each task where its data is")
    p.add_argument("--lrs", default=",".join(RATES), help="learning rates to try (default: SUPERB's, %(default)s)")
    p.add_argument("--steps", type=int, help="train so long only (default: SUPERB's number)")
    p.add_argument("--out", default="result/superb", metavar="DIR", help="default: %(default)s")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    p.set_defaults(call=_call)


def _call(o: Any) -> None:
    import torch

    from saat.link import pretrain_folder
    from saat.sharing.store import find
    from saat.upstream.attention import REGISTRY
    from saat.upstream.config import read_yaml

    rates = tuple(o.lrs.split(","))
    for rate in rates:
        if not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", rate):
            raise SaatError(f"--lrs: '{rate}' is not a learning rate")
    name, _, tag = o.upstream.partition(".")
    ckpt = str(Path(o.ckpt).expanduser().resolve()) if o.ckpt and "://" not in o.ckpt else o.ckpt
    if name in REGISTRY and REGISTRY[name].attention is not None and ckpt is None:
        ckpt, o.upstream = str(find(name, tag or None)), f"{name}_local"  # the same one in every run
    device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(
        pretrain_folder(o.s3prl).parent, Path(o.out).expanduser().resolve(), o.upstream, ckpt, rates, o.steps, device
    )
    rows = run_superb(settings, o.tasks.split(","), read_yaml(o.data))
    print(as_markdown(rows, settings))
