"""`saat demo`: the embedded corpus, pre-training, the four probes, one table, two figures.

Every step leaves its result in the output folder, so that the command, interrupted and given again, goes on.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from saat import __version__
from saat.demo.corpus import make_corpus
from saat.files import write_text
from saat.markdown import markdown_table

PRETRAINED = ("saat_qk", "saat_ours")
ROWS = ("saat_mel", "saat_qk", "saat_ours", "saat_ours_untrained")
PROBES = ("speaker_utterance", "speaker_frame", "phoneme_1hidden", "phoneme_2hidden")
STEPS = {"speaker_utterance": 1500, "speaker_frame": 300, "phoneme_1hidden": 300, "phoneme_2hidden": 300}
SEED = 1337


def run_demo(out: str | Path) -> list[dict[str, Any]]:
    """Everything, into the folder `out`; returns the rows of `table.json`.

    Errors: SaatError, among others when `out` cannot be written.
    """
    from saat.errors import SaatError

    start = time.perf_counter()
    out = Path(out).expanduser().resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaatError(f"--out: cannot make the folder {out}: {error}") from error
    corpus = make_corpus()
    print(f"corpus: {corpus}")
    checkpoints = {name: _pretrained(name, out) for name in PRETRAINED}
    rows = []
    for name in ROWS:
        seconds = _seconds(out / "pretrain" / name) if name in PRETRAINED else 0.0
        probed = _probed(name, checkpoints.get(name, checkpoints["saat_ours"]), corpus, out)
        rows.append(
            {
                "upstream": name,
                **{probe: probed[probe]["test"] for probe in PROBES},
                "pretrain_seconds": round(seconds, 1),
                "x_real_time": round(probed["x_real_time"], 1),
                "chance": {probe: probed[probe]["chance"] for probe in PROBES},
            }
        )
    table = as_markdown(rows)
    write_text(out / "table.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "table.md", table + "\n")
    _draw(checkpoints["saat_ours"], corpus, out)
    print(f"\n{table}\n\n{(time.perf_counter() - start) / 60:.1f} minutes; tables and figures are in {out}")
    return rows


def _seconds(folder: Path) -> float:
    path = folder / "seconds.json"
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0


def _pretrained(name: str, out: Path) -> Path:
    """The last checkpoint of the recipe `demo`; goes on with an unfinished one."""
    from saat.pretrain.cli import pretrain

    folder = out / "pretrain" / name
    before, start = _seconds(folder), time.perf_counter()
    finished = (folder / "finished").is_file()
    print(f"pre-training {name}")
    try:
        path = pretrain(["-u", name, "-c", "demo", "-p", str(folder), "-a", "--seed", str(SEED)])
    finally:
        # The time of interrupted runs counts, too; that of finding the work done does not.
        if not finished and folder.is_dir():
            spent = before + time.perf_counter() - start
            write_text(folder / "seconds.json", json.dumps({"seconds": spent}) + "\n")
    write_text(folder / "finished", path.name + "\n")
    return path


def _probed(name: str, ckpt: Path, corpus: Path, out: Path) -> dict[str, Any]:
    """Test accuracy and chance of the four probes, and the speed of extraction; kept on disk.

    saat_mel and the untrained control take the features and the shape of `ckpt`.
    """
    key = {
        "version": __version__,
        "checkpoint": hashlib.sha256(ckpt.read_bytes()).hexdigest(),
        "corpus": (corpus / "complete.json").read_text(encoding="utf-8"),
        "steps": STEPS,
        "seed": SEED,
    }
    kept = out / "probes" / f"{name}.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found.get("key") == key:
            return found["result"]

    from saat.downstream.config import expert_config
    from saat.downstream.corpus import read_corpus
    from saat.downstream.fast import extract, train_probe
    from saat.upstream import hubconf

    print(f"probing {name}")
    upstream = getattr(hubconf, name)(ckpt=str(ckpt))
    datarc = {"corpus": str(corpus / "train"), "splits": str(corpus / "alignments")}
    splits = read_corpus(expert_config({"datarc": datarc}).datarc, upstream.get_downsample_rates("last_hidden_state"))
    extracted = extract(upstream, [utterance for split in splits.values() for utterance in split])
    phones = {"phones": str(corpus / "alignments" / "converted_aligned_phones.txt")}
    result: dict[str, Any] = {"x_real_time": extracted.x_real_time}
    for probe in PROBES:
        rc = datarc | phones if probe.startswith("phoneme") else datarc
        trained = train_probe(probe, extracted, rc, steps=STEPS[probe], seed=SEED)
        result[probe] = {key: trained[key] for key in ("dev", "test", "chance", "best_step")}
    write_text(kept, json.dumps({"key": key, "result": result}, indent=1) + "\n")
    return result


def _draw(ckpt: Path, corpus: Path, out: Path) -> None:
    """heads.png and reconstruction.png, of a test utterance."""
    from saat.analysis.heads_figure import draw_heads, initial_and_trained
    from saat.pretrain.figures import reconstruction_figure
    from saat.upstream.audio import read_audio

    draw_heads(*initial_and_trained(ckpt), out / "heads.png")
    utterance = (corpus / "alignments" / "test_split.txt").read_text(encoding="utf-8").split()[0]
    wav = read_audio(next((corpus / "train").rglob(f"{utterance}.flac")))
    reconstruction_figure(ckpt, wav, out / "reconstruction.png")


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table, accuracies in percent, chance in the header."""
    chance = rows[0]["chance"]
    titles = ("speaker utt.", "speaker frame", "phoneme 1-hidden", "phoneme 2-hidden")
    heads = [f"{title} (chance {100 * chance[p]:.1f})" for title, p in zip(titles, PROBES, strict=True)]
    lines = [["upstream", *heads, "pre-training s", "x real time"]]
    for row in rows:
        accuracies = [f"{100 * row[probe]:.1f}" for probe in PROBES]
        seconds = f"{row['pretrain_seconds']:.0f}" if row["pretrain_seconds"] else "-"
        lines.append([row["upstream"], *accuracies, seconds, f"{row['x_real_time']:.0f}"])
    return markdown_table(lines)
