"""What is known of a pre-training run, gathered from its checkpoint and its folder: the facts of a model card.

Names and numbers only: folders on the machine that trained are cut down to their last two parts.
"""

import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from saat import __version__
from saat.errors import SaatError
from saat.sharing.published import FORMAT, RECORD_FILE, file_sha256


def new_record(source: Path, states: dict[str, Any], tag: str, licence: str | None) -> dict[str, Any]:
    """The record of a `states-N.ckpt`, but for its weights' hash.

    Args:
        source: the checkpoint; facts that are not in it come from its folder.
        states: what it holds.
        tag: what it will be called.
        licence: of the weights, an SPDX id; None: not stated.
    """
    return {
        "format": FORMAT,
        "upstream": states["Upstream_Config"].get("upstream"),
        "tag": tag,
        "published": now(),
        "paper": "arXiv:2006.05174",
        "licence": licence,
        "saat": __version__,
        "source_sha256": file_sha256(source),
        "pretraining": pretraining(source, states),
        "probes": [],
        "model": states["Upstream_Config"],
    }


def now() -> str:
    """UTC, to the microsecond: the newest is the default."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def pretraining(source: Path, states: dict[str, Any]) -> dict[str, Any]:
    """Steps, corpus, recipe, loss, time and machine, as far as they are known; what is not known is left out."""
    recipe = _shortened(states.get("Config"))
    arguments = states.get("Args")
    arguments = arguments if isinstance(arguments, dict) else vars(arguments) if arguments is not None else {}
    starts = _starts(source.parent)
    facts: dict[str, Any] = {
        "steps": states.get("Step"),
        "seed": arguments.get("seed"),
        "recipe_name": Path(str(arguments["config"])).name if arguments.get("config") else None,
        "corpus": _corpus(states, recipe),
        "device": starts[-1].get("device") if starts else None,
        "versions": starts[-1].get("versions") if starts else None,
        **_logged(source.parent, states),
        "made_from": states.get("Made_From") or _started_from(arguments),
        "recipe": recipe,
    }
    return {key: value for key, value in facts.items() if value not in (None, {}, [])}


def _started_from(arguments: dict[str, Any]) -> str | None:
    """The checkpoint whose weights the run started from (`run_pretrain.py -i`)."""
    start = arguments.get("init_ckpt")
    if not isinstance(start, dict):
        return None
    made = f", made from {start['made_from']}" if start.get("made_from") else ""
    return f"weights started from {Path(str(start.get('file'))).name}, SHA-256 {start.get('sha256')}{made}"


def _shortened(config: Any) -> dict[str, Any]:
    """A recipe whose paths say which corpus it was, not where it lay."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): short(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [short(v) for v in value]
        if isinstance(value, str) and "/" in value:
            return "/".join(Path(value).parts[-2:]).lstrip("/")
        return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

    return short(config) if isinstance(config, dict) else {}


def _corpus(states: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    known = dict(states.get("Corpus") or {})
    datarc = recipe.get("pretrain_expert", {}).get("datarc", {})
    folders = datarc.get("corpus") or datarc.get("sets") or []
    known["folders"] = [folders] if isinstance(folders, str) else folders
    if "hours" not in known:
        known["hours"] = _measured_hours(states)
    return {key: value for key, value in known.items() if value not in (None, [])}


def _measured_hours(states: dict[str, Any]) -> float | None:
    """Hours of the corpus, where it is still there and still the same."""
    from saat.pretrain.manifest import load_corpus
    from saat.pretrain.recipe import load_recipe
    from saat.upstream.config import model_config

    try:
        datarc = load_recipe(states["Config"]).datarc
        config = model_config(states["Upstream_Config"]["upstream"], (states["Upstream_Config"], "checkpoint"))
        corpus = load_corpus(datarc.corpus, config.audio.stride, datarc.splits)
    except (SaatError, KeyError, TypeError, AttributeError):
        return None
    return round(corpus.hours, 3) if corpus.fingerprint() == states["Corpus"].get("fingerprint") else None


def _starts(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if isinstance(line, dict)]
    except (OSError, ValueError):
        return []


def _logged(folder: Path, states: dict[str, Any]) -> dict[str, float]:
    """The last loss and the time a step took, from the TensorBoard log of our own loop."""
    if "Losses" not in states or not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    tag = f"{states['Upstream_Config']['upstream']}/train-loss"
    if tag not in log.Tags()["scalars"]:
        return {}
    points = [point for point in log.Scalars(tag) if point.step <= states["Step"]]
    steps = [(b.wall_time - a.wall_time) / (b.step - a.step) for a, b in zip(points, points[1:], strict=False)
             if b.step > a.step]  # fmt: skip
    facts = {"loss": round(points[-1].value, 4)} if points else {}
    # The median, since a run may have lain still for a night between two of its logs.
    return facts | ({"seconds_per_step": round(statistics.median(steps), 4)} if steps else {})


def probe_results(folders: list[str], source: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The accuracies of probe runs (folders of run_downstream.py), checked to be of this checkpoint.

    Args:
        folders: each with an `accuracy-test.json` and S3PRL's `args_*.yaml`.
        source: the checkpoint (file or folder) they must have been run on.
        record: its record.

    Errors: SaatError for a folder without a result, or of another checkpoint.
    """
    return [_probe(Path(folder).expanduser(), source, record) for folder in folders]


def _probe(folder: Path, source: Path, record: dict[str, Any]) -> dict[str, Any]:
    try:
        result = json.loads((folder / "accuracy-test.json").read_text(encoding="utf-8"))
        newest = max(folder.glob("args_*.yaml"), key=lambda path: path.name)
        args = yaml.safe_load(newest.read_text(encoding="utf-8"))
        found = {key: result[key] for key in ("probe", "split", "accuracy", "chance", "utterances", "step")}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SaatError(
            f"--probe {folder}: no test result there: run run_downstream.py -m evaluate first ({error})"
        ) from error
    if not _same_checkpoint(args, source, record):
        raise SaatError(
            f"--probe {folder}: that was run on -u {args.get('upstream')} -k {args.get('upstream_ckpt')}, "
            f"which is not (or is no longer) {source}"
        )
    found["features"] = args.get("upstream_feature_selection")
    found["fine_tuned"] = bool(args.get("upstream_trainable"))
    return found


def _same_checkpoint(args: dict[str, Any], source: Path, record: dict[str, Any]) -> bool:
    from saat.sharing.store import find

    used = args.get("upstream_ckpt")
    try:
        if used is None:
            name, _, tag = str(args.get("upstream")).partition(".")
            used = find(name, tag or None)
        used = Path(used).expanduser()
        if str(args.get("upstream", "")).endswith("_untrained"):
            return False
        if used.resolve() == source.resolve():
            return True
        known = {record["source_sha256"], record.get("weights", {}).get("sha256")}
        if used.is_dir():
            other = json.loads((used / RECORD_FILE).read_text(encoding="utf-8"))
            return bool(known & {other["source_sha256"], other["weights"]["sha256"]} - {None})
        return file_sha256(used) in known
    except (SaatError, OSError, ValueError, KeyError, TypeError):
        return False
