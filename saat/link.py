"""`saat link` and `saat unlink`: our variants in the pre-training script of a checkout of S3PRL.

That script knows an upstream by its folder in `pretrain/`. Linking adds one for each variant, whose expert imports
ours; no file of S3PRL is edited, and unlinking takes away what linking added.
"""

import hashlib
import json
import shutil
from pathlib import Path

import yaml

from saat import configs
from saat.errors import SaatError
from saat.upstream.attention import REGISTRY

MARK = "saat-link.json"  # the hashes of what was written, by file name
EXPERT = '''"""Added by `saat link`; `saat unlink` takes it away."""

from saat.pretrain.pretrain_expert import UpstreamPretrainExpert  # noqa: F401
'''
OPTIMIZERS = {"lamb": "Lamb_with_schedule", "adamw": "AdamW_with_schedule"}  # ours: S3PRL's


def link(checkout: str | Path) -> list[Path]:
    """Add a folder for each variant to `pretrain/`; those that are there are brought up to date.

    Args:
        checkout: of S3PRL; its top folder, or the folder `s3prl` in it.

    Returns: the folders.

    Errors: SaatError when it is no such checkout, or a folder there is not ours, or was changed since.
    """
    place = pretrain_folder(checkout)
    names = [name for name, entry in REGISTRY.items() if entry.attention is not None]
    for name in names:
        _check_unchanged(place / name)
    for name in names:
        files = _files(name)
        marks = {file: _digest(text) for file, text in files.items()}
        (place / name).mkdir(exist_ok=True)
        for file, text in {MARK: json.dumps(marks, indent=1) + "\n", **files}.items():
            (place / name / file).write_text(text, encoding="utf-8")
    return [place / name for name in names]


def unlink(checkout: str | Path) -> list[Path]:
    """Take away what `link` added. Returns the folders that were there.

    Errors: SaatError, before anything is removed, when something in them was changed or added since.
    """
    place = pretrain_folder(checkout)
    folders = sorted(path.parent for path in place.glob(f"saat_*/{MARK}"))
    for folder in folders:
        _check_unchanged(folder)
    for folder in folders:
        shutil.rmtree(folder)
    return folders


def pretrain_folder(checkout: str | Path) -> Path:
    """The folder `pretrain` of a checkout. Errors: SaatError where there is none."""
    top = Path(checkout).expanduser().resolve()
    for folder in (top / "s3prl" / "pretrain", top / "pretrain"):
        if (folder / "runner.py").is_file() and (folder.parent / "run_pretrain.py").is_file():
            return folder
    raise SaatError(
        f"{checkout} is not a checkout of S3PRL: it has no s3prl/run_pretrain.py and s3prl/pretrain/runner.py"
    )


def _files(name: str) -> dict[str, str]:
    recipe = yaml.safe_load(configs.find("pretrain", "paper").read_text(encoding="utf-8"))
    optimizer = recipe["optimizer"]
    runner = {
        "runner": {**recipe["runner"], "fp16": False},
        "optimizer": {
            "name": OPTIMIZERS[optimizer["name"]],
            "lr": optimizer["lr"],
            "warmup_proportion": optimizer["warmup_proportion"],
        },
        "pretrain_expert": recipe["pretrain_expert"],
    }
    note = (
        "# The paper's recipe in S3PRL's words: name the corpus in pretrain_expert.datarc.corpus, a folder or a list.\n"
    )
    return {
        "__init__.py": "",
        "pretrain_expert.py": EXPERT,
        "config_model.yaml": configs.find("model", name).read_text(encoding="utf-8"),
        "config_runner.yaml": note + yaml.safe_dump(runner, sort_keys=False),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_unchanged(folder: Path) -> None:
    """Either absent, or just what a `link` wrote."""
    if not folder.exists():
        return
    try:
        marks = json.loads((folder / MARK).read_text(encoding="utf-8"))
        there = {path.name for path in folder.iterdir()} - {MARK, "__pycache__"}
        changed = [
            file
            for file in sorted(there | marks.keys())
            if file not in marks or file not in there or _digest((folder / file).read_text("utf-8")) != marks[file]
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise SaatError(f"{folder} was not made by `saat link`: move it away first") from error
    if changed:
        raise SaatError(f"{folder} was changed since it was linked ({', '.join(changed)}): move it away first")
