"""What the commands publish, pull, push and list --store do."""

from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.sharing import published, record, remote, store
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY


def publish(
    source: str,
    store_path: str | None = None,
    name: str | None = None,
    tag: str | None = None,
    probes: list[str] | None = None,
    licence: str | None = None,
    default: bool = False,
    force: bool = False,
) -> Path:
    """Put a checkpoint into the store, with its record and card.

    Args:
        source: a `states-N.ckpt`; or a published checkpoint (its name or folder), whose record gains probes.
        store_path: the store; None: `store.store_folder()`.
        name: the upstream, if one wants to be sure.
        tag: by default the folder a `states-N.ckpt` lies in, or the tag it has.
        probes: folders of run_downstream.py whose test accuracies go into the record.
        licence: of the weights.
        default: make it what `-u <upstream>` takes.
        force: exchange what is there.

    Returns: its folder.
    """
    place = store.store_folder(store_path)
    path = Path(source).expanduser()
    if path.is_file():
        states, folder = checkpoint.load(path), None
        facts = record.new_record(path, states, tag or _default_tag(path), licence)
    else:
        folder = path = store.source_folder(source)
        states, facts = None, published.read(folder)[1]
        facts |= {"tag": tag or facts["tag"], "licence": licence or facts.get("licence")}
        facts["published"] = record.now()
    if name not in (None, facts["upstream"]):
        raise SaatError(f"--name {name}: {source} is a checkpoint of {facts['upstream']}")
    published.check_tag(facts["tag"])
    facts["probes"] = _merged(facts["probes"], record.probe_results(probes or [], path, facts))
    return store.add(place, facts, states, folder, force, default)


def _default_tag(path: Path) -> str:
    tag = path.resolve().parent.name
    if not published.TAG.fullmatch(tag) or tag == store.DEFAULT:
        raise SaatError(f"pass --tag: the folder's name '{tag}' cannot be one")
    return tag


def _merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a probe and way of taking features, the newest."""
    results = {(p.get("probe"), p.get("features"), p.get("fine_tuned")): p for p in [*old, *new]}
    return list(results.values())


def pull(
    source: str,
    store_path: str | None = None,
    tag: str | None = None,
    default: bool = False,
    force: bool = False,
    refresh: bool = False,
) -> Path:
    """Bring a published checkpoint into the store.

    Args:
        source: `hf://owner/repo[@revision]`, `https://…/model.safetensors#sha256=HEX`, or the folder of a published
            checkpoint, such as another lab's store has.
        store_path, default, force: as in `publish`.
        tag: by default the one it was published with; a single file needs one.
        refresh: download again.

    Returns: its folder.
    """
    place = store.store_folder(store_path)
    path = remote.fetch(source, refresh) if "://" in source else store.source_folder(source, store_path)
    if path.is_file():
        if tag is None:
            raise SaatError(f"{source} is a single file, without a record: pass --tag")
        states = checkpoint.load(path)
        return store.add(place, record.new_record(path, states, tag, None), states, force=force, default=default)
    facts = published.read(path)[1]
    facts["tag"] = tag or facts["tag"]
    return store.add(place, facts, source=path, force=force, default=default)


def listing(store_path: str | None = None) -> list[dict[str, Any]]:
    """One object a published checkpoint, for `saat list --store`."""
    place = store.store_folder(store_path)
    if store_path is not None and not place.is_dir():
        raise SaatError(f"--store: no such folder: {place}")
    return [_summary(entry) for entry in store.entries(place)]


def _summary(entry: store.Entry) -> dict[str, Any]:
    run, weights = entry.record["pretraining"], entry.record["weights"]
    corpus = run.get("corpus") if isinstance(run.get("corpus"), dict) else {}
    return {
        "name": entry.name,
        "paper_row": REGISTRY[entry.upstream].paper_row,
        "default": entry.default,
        "steps": run.get("steps"),
        "hours": corpus.get("hours"),
        "corpus": corpus.get("folders"),
        "loss": run.get("loss"),
        "probes": {p.get("probe"): p.get("accuracy") for p in entry.record["probes"] if isinstance(p, dict)},
        "parameters": weights.get("parameters"),
        "bytes": weights["bytes"],
        "licence": entry.record.get("licence"),
        "published": entry.record["published"],
        "folder": str(entry.folder),
    }


def as_table(rows: list[dict[str, Any]], place: Path) -> str:
    """For reading in a terminal; a star marks what `-u NAME` takes without a tag."""
    if not rows:
        return f"the store {place} is empty: `saat publish FILE` or `saat pull hf://OWNER/REPO` adds a checkpoint"
    lines = [("-u", "default", "steps", "corpus h", "loss", "probes", "MB", "published")]
    for row in rows:
        lines.append(
            (
                row["name"],
                "*" if row["default"] else "",
                _shown(row["steps"], "{}"),
                _shown(row["hours"], "{:.2f}"),
                _shown(row["loss"], "{:.4f}"),
                str(len(row["probes"])),
                f"{row['bytes'] / 1e6:.1f}",
                row["published"][:16].replace("T", " "),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, f"store: {place}"])


def _shown(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else "-"


def push(source: str, repo: str, private: bool = False, force: bool = False) -> str:
    """Send a published checkpoint (its name or folder) to the Hugging Face Hub; returns the commit's address."""
    return remote.push(store.source_folder(source), repo, private, force)
