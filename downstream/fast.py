"""The probes in memory: features extracted once, heads trained on them. Same heads, labels, loss as the experts."""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from s3prl.upstream.interfaces import Featurizer, UpstreamBase
from torch import Tensor
from tqdm import tqdm

from saat.downstream.config import expert_config
from saat.downstream.corpus import Utterance, num_tokens, skip, some
from saat.downstream.data import LabelledCorpus, train_batches
from saat.downstream.probe import Head, find_probe, new_records, record, summarise
from saat.errors import SaatError
from saat.upstream.audio import AudioError, read_audio
from saat.upstream.config import SAMPLE_RATE


@dataclass
class Extracted:
    """Features of utterances, and how long they took."""

    stride: float  # samples from token to token
    dim: int  # values in a token
    features: dict[str, Tensor] = field(default_factory=dict)  # utterance id to (T, D) float32 on the CPU
    samples: dict[str, int] = field(default_factory=dict)  # utterance id to its length
    seconds: float = 0.0  # that the upstream took; reading files is not counted
    audio_seconds: float = 0.0

    @property
    def x_real_time(self) -> float:
        """Seconds of audio a second."""
        return self.audio_seconds / max(self.seconds, 1e-9)


@torch.no_grad()
def extract(
    upstream: UpstreamBase,
    utterances: Iterable[Utterance],
    device: str | torch.device = "cpu",
    *,
    feature_selection: str = "last_hidden_state",
    batch_seconds: float = 60.0,
    progress: bool = True,
) -> Extracted:
    """Features of every utterance, as S3PRL's runner would hand them to an expert.

    Args:
        upstream: any S3PRL upstream; it is put into eval mode.
        utterances: whose features; what cannot be read, or is shorter than a token, is named and left out.
        device: where the upstream runs.
        feature_selection: S3PRL's `-s`; of several hidden states, their plain mean (an untrained weighted sum).
        batch_seconds: audio in a batch, padding included; the batches are sorted by length.
        progress: draw a progress bar.
    """
    upstream = upstream.to(device).eval()
    featurizer = Featurizer(upstream, feature_selection, upstream_device=device).to(device)
    result = Extracted(featurizer.downsample_rate, featurizer.output_dim)
    bad: list[str] = []
    ordered = sorted(utterances, key=lambda utterance: (-utterance.samples, utterance.id))
    with tqdm(total=len(ordered), desc="features", unit="utt", disable=not progress) as bar:
        for batch in _by_seconds(ordered, batch_seconds):
            names, wavs = [], []
            for utterance in batch:
                try:
                    wav = read_audio(utterance.path)
                except AudioError as error:
                    bad.append(str(error))
                    continue
                if num_tokens(len(wav), result.stride) < 1:
                    bad.append(f"{utterance.path}: shorter than a token")
                    continue
                names.append(utterance.id)
                wavs.append(wav.to(device))
            if wavs:
                start = time.perf_counter()
                features = [f.float().cpu() for f in featurizer(wavs, upstream(wavs))]
                result.seconds += time.perf_counter() - start
                # Copies, so that no utterance keeps its whole padded batch alive.
                result.features.update(zip(names, (f.clone() for f in features), strict=True))
                result.samples.update(zip(names, map(len, wavs), strict=True))
            bar.update(len(batch))
    skip(bad, "audio files that turned out bad", strict=False)
    if not result.features:
        raise SaatError(f"no features: none of the {len(ordered)} audio files can be used: {some(bad)}")
    result.audio_seconds = sum(result.samples.values()) / SAMPLE_RATE
    return result


def _by_seconds(ordered: list[Utterance], seconds: float) -> Iterable[list[Utterance]]:
    """Runs of utterances, the longest first, that fill up to so many seconds once they are padded."""
    batch: list[Utterance] = []
    for utterance in ordered:
        if batch and (len(batch) + 1) * batch[0].samples > seconds * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(utterance)
    if batch:
        yield batch


def train_probe(
    probe_name: str,
    extracted: Extracted,
    datarc: dict[str, Any],
    modelrc: dict[str, Any] | None = None,
    *,
    steps: int = 300,
    batch_size: int = 4,
    lr: float = 3e-3,
    seed: int = 0,
    eval_every: int = 25,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train one probe on extracted features; the weights that do best on dev are tested.

    Args:
        probe_name: such as `speaker_frame`.
        extracted: features of the corpus that `datarc` describes; utterances without features are left out.
        datarc, modelrc: as in the probe's config.yaml.
        steps, batch_size, lr: of Adam; a batch is so many utterances.
        seed: of the head's first weights and of the order of the batches.
        eval_every: steps from one look at dev to the next.

    Returns:
        dev and test accuracy, `chance` on test, `best_step`, `seconds`, and the trained `head`.

    Errors: SaatError as the expert raises them.
    """
    start = time.perf_counter()
    probe = find_probe(probe_name)
    config = expert_config({"datarc": datarc, "modelrc": modelrc or {}})
    corpus = LabelledCorpus(probe.labels, config.datarc, extracted.stride)
    data = {name: _Split(corpus, name, extracted) for name in ("train", "dev", "test")}
    classes = len(corpus.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(probe, extracted.dim, classes, config.modelrc).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    best = {"dev": -1.0, "step": 0, "weights": None}
    step, epoch = 0, 0
    with tqdm(total=steps, desc=probe_name, unit="step", disable=not progress) as bar:
        while step < steps:
            for batch in train_batches(len(data["train"].features), batch_size, seed, epoch)[: steps - step]:
                optimizer.zero_grad()
                head(*data["train"].batch(batch, device)).loss.backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.update()
                if step % eval_every == 0 or step == steps:
                    accuracy = evaluate(head, data["dev"], classes, device)["accuracy"]
                    if accuracy > best["dev"]:
                        best = {"dev": accuracy, "step": step, "weights": copy.deepcopy(head.state_dict())}
                    bar.set_postfix(dev=f"{accuracy:.3f}", refresh=False)
            epoch += 1
    head.load_state_dict(best["weights"])
    test = evaluate(head, data["test"], classes, device, corpus.majority(probe.pooled))
    return {
        "dev": best["dev"],
        "test": test["accuracy"],
        "chance": test["chance"],
        "best_step": best["step"],
        "classes": classes,
        "seconds": time.perf_counter() - start,
        "head": head,
    }


class _Split:
    """The features and labels of one split, in memory."""

    def __init__(self, corpus: LabelledCorpus, name: str, extracted: Extracted):
        utterances = [u for u in corpus.split(name) if u.id in extracted.features]
        if not utterances:
            raise SaatError(f"no utterance of the {name} split has features: extract those of the corpus in datarc")
        self.features = [extracted.features[u.id] for u in utterances]
        self.labels = [corpus.labels(u, extracted.samples[u.id]) for u in utterances]

    def batch(self, indices: Iterable[int], device: str | torch.device) -> tuple[list[Tensor], list[Tensor]]:
        indices = list(indices)
        return [self.features[i].to(device) for i in indices], [self.labels[i].to(device) for i in indices]


@torch.no_grad()
def evaluate(
    head: Head, split: _Split, classes: int, device: str | torch.device = "cpu", majority: int | None = None
) -> dict[str, Any]:
    """Accuracy and loss of a head on a split, as the expert computes them."""
    records = new_records()
    for first in range(0, len(split.features), 64):
        features, labels = split.batch(range(first, min(first + 64, len(split.features))), device)
        record(records, head(features, labels), len(features), sum(map(len, features)), classes)
    return summarise(records, majority)
