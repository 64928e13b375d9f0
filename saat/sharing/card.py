"""The model card of a published checkpoint: its record, for people and for the Hugging Face Hub."""

from typing import Any

import yaml

from saat.upstream.attention import variant

TITLES = {
    "speaker_utterance": "speaker of an utterance",
    "speaker_frame": "speaker of a frame",
    "phoneme_1hidden": "phoneme, one hidden layer",
    "phoneme_2hidden": "phoneme, two hidden layers",
}


def as_markdown(record: dict[str, Any]) -> str:
    """README.md: the Hub's metadata, then what the model is, how it was made, how good it is, how to use it."""
    about = {"library_name": "s3prl", "tags": ["s3prl", "speech", "audio-albert", record["upstream"]]}
    if record.get("licence"):
        about["license"] = record["licence"].lower()
    row = variant(record["upstream"]).paper_row
    name = f"{record['upstream']}.{record['tag']}"
    facts = "\n".join(f"| {key} | {_cell(value)} |" for key, value in _facts(record))
    return f"""---
{yaml.safe_dump(about, sort_keys=False).strip()}
---

# {name}

A self-supervised speech model: an Audio ALBERT whose attention is the variant "{row}" of *Input-independent
Attention Weights Are Expressive Enough: A Study of Attention in Self-supervised Audio Transformers*
([arXiv:2006.05174](https://arxiv.org/abs/2006.05174)), pre-trained by masked acoustic modelling. It turns 16 kHz speech
into hidden states, and is an upstream of [S3PRL](https://github.com/s3prl/s3prl) through the package `s3prl-saat`.

| | |
|---|---|
{facts}

## Accuracy of probes on its frozen features

{_probes(record)}

## Use

`saat pull` brings this folder into a store; then `-u {name}` takes it, wherever S3PRL takes an upstream:

```python
import saat

saat.register()
from s3prl.nn import S3PRLUpstream

model = S3PRLUpstream("{name}").eval()
```

`config.json` has these facts, the whole recipe and the model's config; `model.safetensors` has the weights. No code is
read from either.
"""


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    run, audio, sizes = record["pretraining"], record["model"]["audio"], record["model"]["transformer"]
    weights, corpus = record["weights"], run.get("corpus", {})
    runner = run.get("recipe", {}).get("runner", {})
    hop_ms = audio["hop_ms"] * audio["stack"]
    layers = "one set of weights" if sizes.get("share_layers", True) else "a set of weights each"
    speech = [f"{corpus['hours']:.2f} h" if "hours" in corpus else "hours unknown"]
    speech += [f"{corpus['utterances']} utterances"] if "utterances" in corpus else []
    speech += [", ".join(map(str, corpus["folders"]))] if corpus.get("folders") else []
    steps = f"{run['steps']}" if "steps" in run else "unknown"
    steps += f" of {runner['total_steps']}" if "steps" in run and runner.get("total_steps") else ""
    batch = run.get("recipe", {}).get("pretrain_expert", {}).get("datarc", {}).get("train_batch_size")
    optimizer = run.get("recipe", {}).get("optimizer", {})
    recipe = [f"`{run['recipe_name']}`"] if "recipe_name" in run else []
    recipe += [f"{optimizer['name']}, learning rate {optimizer['lr']:g}"] if "lr" in optimizer else []
    recipe += [f"batches of {batch}"] if batch else []
    recipe += [f"seed {run['seed']}"] if "seed" in run else []
    rate = run.get("seconds_per_step")
    time = f"about {rate * run['steps'] / 3600:.2f} h ({rate:g} s a step)" if rate and "steps" in run else "unknown"
    return [
        ("Variant", f"{variant(record['upstream']).paper_row} (`{record['upstream']}`)"),
        ("Parameters", f"{weights['parameters'] / 1e6:.2f} M"),
        ("Size", f"{sizes['num_hidden_layers']} layers with {layers}, hidden size {sizes['hidden_size']}"),
        ("Input", f"{audio['n_mels']} log-mel{' and deltas' if audio['delta'] else ''}; a token each {hop_ms:g} ms"),
        ("Pre-training speech", "; ".join(speech)),
        ("Steps", steps),
        ("Recipe", "; ".join(recipe) or "unknown"),
        ("Loss at the end (L1)", f"{run['loss']:.4f}" if "loss" in run else "unknown"),
        ("Pre-training time", time + (f" on {run['device']}" if "device" in run else "")),
        ("Published", f"{record['published'][:10]}, with s3prl-saat {record['saat']}"),
        ("Licence of the weights", record.get("licence") or "not stated"),
        ("SHA-256 of model.safetensors", f"`{weights['sha256']}`"),
        *([("Made from", run["made_from"])] if "made_from" in run else []),
    ]


def _probes(record: dict[str, Any]) -> str:
    if not record["probes"]:
        return "None has been recorded."
    lines = [
        "| probe | accuracy (%) | guessing the most frequent class (%) | utterances | features |",
        "|" + "---|" * 5,
    ]
    for probe in record["probes"]:
        features = f"{probe['features']}{', fine-tuned' if probe['fine_tuned'] else ''}"
        cells = (TITLES.get(probe["probe"], probe["probe"]), f"{100 * probe['accuracy']:.1f}",
                 f"{100 * probe['chance']:.1f}", probe["utterances"], features)  # fmt: skip
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """One line, and no bar that would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
