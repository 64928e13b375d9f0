"""All probes of a frozen upstream from features that are extracted once: `saat probe`, and the study."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from saat.cache import cache_folder
from saat.downstream.config import DataConfig, ModelrcConfig
from saat.downstream.data import LabelledCorpus, other_speakers
from saat.downstream.extraction import Extractor
from saat.downstream.feature_store import DTYPES, StoredFeatures, check_room, stored_features
from saat.downstream.frozen import FrozenUpstream, extractor_of, load_upstream
from saat.downstream.probe import PROBES, Probe, find_probe
from saat.downstream.training import SplitFeatures, evaluate, first_head, train_heads
from saat.errors import SaatError

log = logging.getLogger("saat.downstream")

# A step on tokens learns from thousands of them, one on utterances from 16, at no cost: so the latter may be many, with
# larger learning rates.
LRS, STEPS = (1e-3, 3e-3), 2000
POOLED_LRS, POOLED_STEPS = (1e-2, 3e-2, 1e-1), 5000
BATCH = 16  # utterances, as in the probes' packaged configs
EVAL_EVERY = 50  # steps
PATIENCE = 10  # looks at dev, for those on tokens


@dataclass(frozen=True)
class Settings:
    """Everything but the upstream and its checkpoint."""

    speaker: list[str]  # the speaker probes' corpus: folders
    phoneme: list[str]  # the phoneme probes' corpus
    phones: str | None  # alignments; without them there are no phoneme probes
    splits: str | None = None  # a folder of lists; none: the split is drawn
    test_other: list[str] = ()  # a corpus of other speakers, all of it a second test of the phoneme probes
    probes: tuple[str, ...] = tuple(PROBES)
    seeds: int = 1  # how many: 0, 1, …
    lrs: tuple[float, ...] | None = None  # dev chooses among them; none: LRS, or POOLED_LRS
    steps: int = STEPS  # at most, of the probes on tokens
    pooled_steps: int = POOLED_STEPS  # of the probe on means over time
    batch: int = BATCH  # utterances a step, of the probes on tokens
    layer: str = "last"  # or a number from 0 (the input representation), or `all`: a probe for each
    weighted_sum: bool = False  # a learnt one of all hidden states, instead of a layer
    dtype: str = "float32"  # of the features on disk, or float16
    features: str | None = None  # the folder they are kept in; none: in the user's cache
    device: str = "cpu"
    upstream_config: str | None = None  # a YAML file of the upstream's options, S3PRL's `-g`


@dataclass(frozen=True)
class Corpus:
    """A labelled corpus with its features."""

    labelled: LabelledCorpus
    stored: StoredFeatures

    def split(self, probe: Probe, name: str, layers: Sequence[Mapping[str, Tensor]]) -> SplitFeatures:
        """`train`, `dev`, `test`, or `all`."""
        labelled = self.labelled
        utterances = [u for s in labelled.splits.values() for u in s] if name == "all" else labelled.split(name)
        return SplitFeatures(labelled, probe, utterances, layers, self.stored.samples, name)


def run_probes(upstream: str, ckpt: str | None, settings: Settings, progress: bool = True) -> list[dict[str, Any]]:
    """Train and test the probes on an upstream's frozen hidden states.

    Args:
        upstream, ckpt: as `-u` and `-k` of run_downstream.py.
        settings: everything else.
        progress: draw progress bars, and say what is left out.

    Returns: an object for each probe, layer, seed and split (`test`, `test-other`): upstream, checkpoint,
        checkpoint_sha256, probe, layer, seed, split, accuracy, dev, chance, lr, best_step, steps, classes, utterances,
        seconds (training, of all learning rates); with a weighted sum also layer_weights. Accuracies are in [0, 1].

    Errors: SaatError.
    """
    probes = check_settings(settings)
    frozen = load_upstream(upstream, ckpt, settings.upstream_config)
    extractor = extractor_of(frozen, settings.layer, settings.weighted_sum, settings.device)
    corpora = _corpora(probes, settings, frozen, extractor, progress)
    rows: list[dict[str, Any]] = []
    for probe in probes:
        for layer, number in _layers(settings, extractor):
            for seed in range(settings.seeds):
                head = f"{probe.name}" + (f", layer {layer}" if layer != "last" else "") + f", seed {seed}"
                found = _train(probe, corpora, number, seed, settings, head if progress else None)
                about = {"upstream": upstream, "checkpoint": frozen.ckpt, "checkpoint_sha256": frozen.sha256}
                rows += [{**about, "probe": probe.name, "layer": layer, "seed": seed, **row} for row in found]
    return rows


def check_settings(settings: Settings) -> list[Probe]:
    """The probes that will be trained. Errors: SaatError for what cannot be used."""
    probes = [find_probe(name) for name in dict.fromkeys(settings.probes)]
    if settings.phones is None and any(probe.labels == "phone" for probe in probes):
        log.warning("no phone labels (--phones): the phoneme probes are left out")
        probes = [probe for probe in probes if probe.labels != "phone"]
    if not probes:
        raise SaatError("no probe is left: pass --phones PATH for the phoneme probes, or name speaker probes")
    kinds = {probe.labels for probe in probes}
    for kind, folders, option in (
        ("speaker", settings.speaker, "--speaker"),
        ("phone", settings.phoneme, "--phoneme"),
    ):
        if kind in kinds and not folders:
            raise SaatError(f"no corpus for the {option[2:]} probes: pass {option} or --corpus FOLDER")
    if settings.test_other and "phone" not in kinds:
        raise SaatError("--test-other is for the phoneme probes, and there are none: pass --phones, or leave it out")
    for name in ("seeds", "steps", "pooled_steps", "batch"):
        if getattr(settings, name) < 1:
            raise SaatError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    lrs = settings.lrs
    if lrs is not None and (not lrs or not all(0 < lr < float("inf") for lr in lrs)):
        raise SaatError(f"--lrs must be positive numbers, not {', '.join(map(str, lrs)) or 'none'}")
    if settings.dtype not in DTYPES:
        raise SaatError(f"--dtype must be one of {', '.join(DTYPES)}, not '{settings.dtype}'")
    if settings.weighted_sum and settings.layer != "last":
        raise SaatError("--weighted-sum takes all hidden states: leave out --layer")
    return probes


def _corpora(
    probes: list[Probe], settings: Settings, frozen: FrozenUpstream, extractor: Extractor, progress: bool
) -> dict[str, Corpus]:
    """`speaker`, `phone` and `other`, as far as they are needed."""
    root = Path(settings.features).expanduser() if settings.features else cache_folder() / "features"
    kinds = {probe.labels for probe in probes}
    # All corpora are read before the first is extracted, so that what is wrong is told at once.
    labelled: dict[str, LabelledCorpus] = {}
    if "speaker" in kinds:
        labelled["speaker"] = LabelledCorpus(
            "speaker", DataConfig(corpus=list(settings.speaker), splits=settings.splits), extractor.stride
        )
        if len(labelled["speaker"].classes) < 2:
            raise SaatError(
                f"one speaker ({labelled['speaker'].classes[0]}) is all there is in {', '.join(settings.speaker)}: "
                "the speaker probes need several; --probes phoneme_1hidden phoneme_2hidden leaves them out"
            )
    if "phone" in kinds:
        config = DataConfig(corpus=list(settings.phoneme), splits=settings.splits, phones=settings.phones)
        labelled["phone"] = LabelledCorpus("phone", config, extractor.stride)
        if settings.test_other:
            labelled["other"] = other_speakers(settings.test_other, labelled["phone"], settings.phones)
    for kind in kinds:
        for split in ("train", "dev", "test"):
            labelled[kind].split(split)
    check_room(root, frozen.identity, extractor, [each.utterances for each in labelled.values()], settings.dtype)
    return {
        kind: Corpus(
            corpus, stored_features(root, frozen.identity, extractor, corpus.utterances, settings.dtype, progress)
        )
        for kind, corpus in labelled.items()
    }


def _layers(settings: Settings, extractor: Extractor) -> list[tuple[str | int, int | None]]:
    """What to call each layer, and where among those stored it is; None: all, for the weighted sum."""
    if settings.weighted_sum:
        return [("weighted-sum", None)]
    if extractor.layers is None:
        return [("last", 0)]
    return [(layer, number) for number, layer in enumerate(extractor.layers)]


def _train(
    probe: Probe, corpora: dict[str, Corpus], number: int | None, seed: int, settings: Settings, progress: str | None
) -> list[dict[str, Any]]:
    """One probe, one layer, one seed, all learning rates; the one that dev likes best is tested."""
    start = time.perf_counter()
    corpus = corpora[probe.labels]

    def layers(corpus: Corpus) -> Sequence[Mapping[str, Tensor]]:
        return corpus.stored.layers if number is None else [corpus.stored.layers[number]]

    train, dev = (corpus.split(probe, name, layers(corpus)) for name in ("train", "dev"))
    classes = len(corpus.labelled.classes)
    steps = settings.pooled_steps if probe.pooled else settings.steps
    trained = train_heads(
        partial(first_head, probe, train.dim, classes, ModelrcConfig(), len(layers(corpus)), seed),
        train,
        dev,
        classes,
        lrs=settings.lrs or (POOLED_LRS if probe.pooled else LRS),
        steps=steps,
        batch_size=BATCH if probe.pooled else settings.batch,
        seed=seed,
        eval_every=min(EVAL_EVERY, steps),
        patience=None if probe.pooled else PATIENCE,
        device=settings.device,
        progress=progress,
    )
    best = max(trained, key=lambda t: t.dev)  # the first, of equals
    about = {"dev": best.dev, "lr": best.lr, "best_step": best.best_step, "steps": best.steps, "classes": classes}
    seconds = round(time.perf_counter() - start, 3)
    if best.head.weights is not None:
        about["layer_weights"] = best.head.layer_weights()
    tests = {"test": corpus.split(probe, "test", layers(corpus))}
    if "other" in corpora and probe.labels == "phone":
        tests["test-other"] = corpora["other"].split(probe, "all", layers(corpora["other"]))
    majority = corpus.labelled.majority(probe.pooled)
    rows = []
    for split, data in tests.items():
        found = evaluate(best.head, data, classes, settings.device, majority)
        result = {"accuracy": found["accuracy"], "chance": found["chance"], "utterances": found["utterances"]}
        rows.append({"split": split, **result, **about, "seconds": seconds})
    return rows
