"""The YAML files that come with the package: one model config a variant, recipes for pre-training."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names(kind: str) -> list[str]:
    """The names of the packaged configs of a kind (`model` or `pretrain`), without the ending."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def find(kind: str, name: str) -> Path:
    """The file of a packaged config; names the nearest known one when there is none."""
    from saat.errors import SaatError, did_you_mean

    path = FOLDER / kind / f"{name}.yaml"
    if name not in names(kind):
        raise SaatError(f"no {kind} config '{name}' comes with the package: {did_you_mean(name, names(kind))}")
    return path
