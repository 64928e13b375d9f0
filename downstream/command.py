"""The command `saat probe`."""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.files import write_text
from saat.markdown import markdown_table


def add_command(commands: Any) -> None:
    """`saat probe`."""
    p = commands.add_parser("probe", help="train and test the probes on features extracted once")
    p.add_argument("-u", "--upstream", required=True, help="any of S3PRL's hub, ours included")
    p.add_argument("-k", "--ckpt", help="its checkpoint; default: the store's, for saat_*")
    p.add_argument("-g", "--upstream-config", metavar="FILE", help="YAML of its options, such as `quantize: int8`")
    p.add_argument("--corpus", nargs="+", default=[], metavar="PATH", help="of all probes, in LibriSpeech's layout")
    p.add_argument("--speaker", nargs="+", metavar="PATH", help="of the speaker probes, where it differs")
    p.add_argument("--phoneme", nargs="+", metavar="PATH", help="of the phoneme probes, where it differs")
    p.add_argument("--phones", metavar="PATH", help="labels: a text file or TextGrids; without, no phoneme probes")
    p.add_argument("--splits", metavar="DIR", help="of train_split.txt, test_split.txt, maybe dev_split.txt")
    p.add_argument("--test-other", nargs="+", default=[], metavar="PATH", help="a second test of the phoneme probes")
    p.add_argument("--probes", nargs="+", metavar="NAME", help="default: all four")
    p.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    p.add_argument("--lrs", nargs="+", type=float, help="dev chooses; default: 1e-3 3e-3, of utterances 1e-2 3e-2 1e-1")
    p.add_argument("--steps", type=int, help="at most, of probes on tokens (default: 2000)")
    p.add_argument("--batch", type=int, help="utterances in such a step (default: 16)")
    p.add_argument("--pooled-steps", type=int, help="of 16 utterances, of speaker_utterance (default: 5000)")
    p.add_argument("--layer", default="last", help="last, all, or a hidden state's number (default: %(default)s)")
    p.add_argument("--weighted-sum", action="store_true", help="a learnt sum of all hidden states, as in SUPERB")
    p.add_argument("--dtype", default="float32", help="of the features on disk, or float16 (default: %(default)s)")
    p.add_argument("--features", metavar="DIR", help="where they are kept (default: in the user's cache)")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    p.add_argument("--json", metavar="FILE", help="a list of objects, one a probe, layer, seed and test set")
    p.set_defaults(call=_call)


def _call(o: argparse.Namespace) -> None:
    import logging

    import torch

    from saat.downstream.fast_probes import BATCH, POOLED_STEPS, PROBES, STEPS, Settings, run_probes

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    out = Path(o.json).expanduser() if o.json else None
    if out is not None and out.exists():
        raise SaatError(f"--json: {out} is there already: remove it, or name another")
    if out is not None:
        _writable(out.parent)
    settings = Settings(
        speaker=o.speaker or o.corpus,
        phoneme=o.phoneme or o.corpus,
        phones=o.phones,
        splits=o.splits,
        test_other=o.test_other,
        probes=tuple(o.probes or PROBES),
        seeds=o.seeds,
        lrs=tuple(o.lrs) if o.lrs else None,
        steps=STEPS if o.steps is None else o.steps,
        batch=BATCH if o.batch is None else o.batch,
        pooled_steps=POOLED_STEPS if o.pooled_steps is None else o.pooled_steps,
        layer=o.layer,
        weighted_sum=o.weighted_sum,
        dtype=o.dtype,
        features=o.features,
        device=o.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        upstream_config=o.upstream_config,
    )
    rows = run_probes(o.upstream, o.ckpt, settings)
    print(as_markdown(rows))  # first: it is there even where the file cannot be written
    if out is not None:
        write_text(out, json.dumps(rows, indent=1) + "\n")


def _writable(folder: Path) -> None:
    """Errors: SaatError, before hours of training rather than after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SaatError(f"--json: cannot write into {folder}: {error}") from error


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each probe, layer and test set: accuracies in percent, mean and deviation over the seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["probe"], row["layer"], row["split"]), []).append(row)
    lines = [["probe", "layer", "test set", "accuracy", "chance", "learning rate"]]
    for (probe, layer, split), group in groups.items():
        accuracies = [100 * row["accuracy"] for row in group]
        deviation = f" ± {statistics.stdev(accuracies):.1f}" if len(group) > 1 else ""
        accuracy = f"{statistics.mean(accuracies):.1f}{deviation}"
        rates = ", ".join(f"{lr:g}" for lr in sorted({row["lr"] for row in group}))
        lines.append([probe, str(layer), split, accuracy, f"{100 * group[0]['chance']:.1f}", rates])
    learnt = []
    for row in rows:
        if row["split"] == "test" and "layer_weights" in row:
            weights = " ".join(f"{weight:.2f}" for weight in row["layer_weights"])
            learnt.append(f"{row['probe']}, seed {row['seed']}: weights of the hidden states, from 0: {weights}")
    return "\n".join([markdown_table(lines), *([""] if learnt else []), *learnt])
