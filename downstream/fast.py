"""The probes in memory: features extracted once, a head trained on them. Same heads, labels, loss as the experts."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor

from saat.downstream.config import expert_config
from saat.downstream.corpus import Utterance
from saat.downstream.data import LabelledCorpus
from saat.downstream.extraction import Extractor
from saat.downstream.probe import Head, find_probe
from saat.downstream.training import MixedHead, SplitFeatures, evaluate, train_heads
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


def extract(
    upstream: UpstreamBase,
    utterances: Iterable[Utterance],
    device: str | torch.device = "cpu",
    *,
    feature_selection: str = "last_hidden_state",
    batch_seconds: float = 60.0,
    progress: bool = True,
) -> Extracted:
    """Features of every utterance, as S3PRL's runner would hand them to an expert (see Extractor)."""
    extractor = Extractor(upstream, feature_selection, device=device)
    result = Extracted(extractor.stride, extractor.dim)
    for utterance in extractor(utterances, batch_seconds, progress):
        # A copy, so that no utterance keeps its whole padded batch alive.
        result.features[utterance.id] = utterance.states[0].clone()
        result.samples[utterance.id] = utterance.samples
    result.seconds = extractor.seconds
    result.audio_seconds = sum(result.samples.values()) / SAMPLE_RATE
    return result


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
    data = {
        name: SplitFeatures(corpus, probe, corpus.split(name), [extracted.features], extracted.samples, name)
        for name in ("train", "dev", "test")
    }
    classes = len(corpus.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = MixedHead(Head(probe, extracted.dim, classes, config.modelrc), layers=1)
    (trained,) = train_heads(
        lambda: head,
        data["train"],
        data["dev"],
        classes,
        lrs=[lr],
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        eval_every=eval_every,
        device=device,
        exact=True,
        progress=probe_name if progress else None,
    )
    test = evaluate(trained.head, data["test"], classes, device, corpus.majority(probe.pooled))
    return {
        "dev": trained.dev,
        "test": test["accuracy"],
        "chance": test["chance"],
        "best_step": trained.best_step,
        "classes": classes,
        "seconds": time.perf_counter() - start,
        "head": trained.head.head,
    }
