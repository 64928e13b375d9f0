"""Heads trained on features: side by side as one by one, as S3PRL's runner trains them, the rate chosen on dev."""

from collections import defaultdict
from functools import partial

import pytest
import torch
from s3prl import hub
from s3prl.upstream.interfaces import Featurizer

from saat.downstream import training
from saat.downstream.config import DataConfig, ModelrcConfig
from saat.downstream.data import LabelledCorpus
from saat.downstream.extraction import Extractor
from saat.downstream.fast import extract
from saat.downstream.probe import PROBES, Head
from saat.downstream.training import MixedHead, SplitFeatures, evaluate, first_head, train_heads
from saat.run_downstream import main

LAYERS, DIM = 3, 72


@pytest.fixture
def data(make_corpus, mel_config):
    """(probe name, layers) to its splits and classes; further layers are noisy copies of the features."""
    corpus = make_corpus(speakers=4, utterances=8)
    upstream = hub.saat_mel(model_config=str(mel_config))
    labelled = {
        kind: LabelledCorpus(kind, DataConfig(**corpus.datarc()), 480) for kind in ("speaker", "phone")
    }  # the same splits
    extracted = extract(upstream, labelled["speaker"].utterances, progress=False)
    torch.manual_seed(0)
    noisy = [
        {name: f + noise * torch.randn_like(f) for name, f in extracted.features.items()} for noise in (0.0, 3.0, 9.0)
    ]

    def make(name: str, layers: int = 1):
        of = labelled[PROBES[name].labels]
        split = partial(SplitFeatures, of, PROBES[name], layers=noisy[:layers], samples=extracted.samples)
        return {s: split(of.splits[s], name=s) for s in ("train", "dev", "test")}, len(of.classes)

    return make


def trained(data, name, lrs, layers=1, **options):
    splits, classes = data(name, layers)
    make = partial(first_head, PROBES[name], DIM, classes, ModelrcConfig(hidden_size=16), layers, 3)
    options = dict(steps=30, batch_size=5, seed=3, eval_every=5, exact=True) | options
    return train_heads(make, splits["train"], splits["dev"], classes, lrs=lrs, **options)


@pytest.mark.parametrize("layers", [1, LAYERS])
@pytest.mark.parametrize("name", PROBES)
def test_side_by_side_is_one_by_one(data, name, layers):
    together = trained(data, name, (1e-3, 1e-2, 3e-2), layers)
    alone = [trained(data, name, (lr,), layers)[0] for lr in (1e-3, 1e-2, 3e-2)]
    for one, other in zip(together, alone, strict=True):
        assert (one.lr, one.best_step) == (other.lr, other.best_step) and one.dev == pytest.approx(other.dev)
        for key, value in one.head.state_dict().items():
            assert torch.allclose(value, other.head.state_dict()[key], atol=1e-5), key


@pytest.mark.parametrize("name", PROBES)
def test_a_batch_is_what_the_expert_makes_of_it(data, name):
    """Rows, targets and loss, by the definition; chunks change nothing."""
    splits, classes = data(name)
    dev, head = splits["dev"], first_head(PROBES[name], DIM, classes, ModelrcConfig(hidden_size=16), 1, 0)
    x, targets = dev.batch(range(len(dev)))
    if not PROBES[name].pooled:
        expected = head.head.inputs(dev.features[0], dev.labels)
        assert torch.equal(x[0], expected[0]) and torch.equal(targets, expected[1])
    loss = head.head.classify(x[0], targets).loss.item()
    summed = training.summed_losses([head, head], x, targets).item()
    assert summed == pytest.approx(2 * loss * len(targets), rel=1e-5)
    found = evaluate(head, dev, classes)
    assert found["loss"] == pytest.approx(loss, rel=1e-5) and found["utterances"] == len(dev)


def test_chunks_change_nothing(data, monkeypatch):
    whole = trained(data, "phoneme_1hidden", (1e-2,), steps=8)[0]
    monkeypatch.setattr(training, "CHUNK", 7)
    parts = trained(data, "phoneme_1hidden", (1e-2,), steps=8)[0]
    for key, value in whole.head.state_dict().items():
        assert torch.allclose(value, parts.head.state_dict()[key], atol=1e-5)


@pytest.mark.parametrize("units", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_fast_products_learn_as_well(data, monkeypatch, units):
    exact = trained(data, "phoneme_2hidden", (1e-2,), steps=60)[0]
    for kind in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, kind, lambda kind=kind: kind == units, raising=False)
    fast = trained(data, "phoneme_2hidden", (1e-2,), steps=60, exact=False)[0]
    assert exact.dev > 0.6 and fast.dev == pytest.approx(exact.dev, abs=0.1)
    assert fast.head.head.layers[0].weight.dtype == torch.float32
    assert not torch.equal(fast.head.head.layers[0].weight, exact.head.head.layers[0].weight)


def test_patience_stops_a_head_and_not_its_neighbours(data):
    useless, good = trained(data, "speaker_frame", (1e-30, 1e-2), steps=40, patience=2)
    assert useless.best_step == 5 and useless.steps == 15 and good.steps > 15
    (alone,) = trained(data, "speaker_frame", (1e-2,), steps=40, patience=2)
    assert (alone.steps, alone.best_step) == (good.steps, good.best_step)
    assert torch.allclose(alone.head.head.layers[0].weight, good.head.head.layers[0].weight, atol=1e-5)


def test_weighted_sum_is_that_of_s3prls_featurizer(tiny_config):
    upstream = hub.saat_ours_untrained(model_config=str(tiny_config))
    featurizer = Featurizer(upstream, "hidden_states", upstream_device="cpu")
    wavs = [torch.randn(16000), torch.randn(9000)]
    with torch.no_grad():
        result = upstream(wavs)
        featurizer.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
    expected = torch.cat(featurizer(wavs, result))
    mixed = MixedHead(Head(PROBES["speaker_frame"], 24, 4, ModelrcConfig()), 3)
    assert mixed.layer_weights() == pytest.approx([1 / 3] * 3)
    mixed.load_state_dict({"weights": featurizer.weights}, strict=False)
    x = torch.stack([torch.cat(featurizer.tolist(wavs, state)) for state in result["hidden_states"]])
    assert torch.allclose(mixed.mix(x), expected, atol=1e-6)
    expected.square().mean().backward()
    mixed.mix(x).square().mean().backward()
    assert torch.allclose(mixed.weights.grad, featurizer.weights.grad, atol=1e-6)


def test_weighted_sum_finds_the_layer_that_knows(data):
    (result,) = trained(data, "speaker_frame", (3e-2,), LAYERS, steps=60)
    weights = result.head.layer_weights()
    assert sum(weights) == pytest.approx(1) and weights[0] > 0.36 and weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("selection", ["last_hidden_state", "hidden_states"])
def test_the_weights_are_those_of_s3prls_runner(make_corpus, tiny_config, tmp_path, monkeypatch, selection):
    """The same seed, steps, rate and batches, through run_downstream.py: the same weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run_downstream.py"])
    monkeypatch.setattr("torch.multiprocessing.set_sharing_strategy", lambda strategy: None)
    corpus = make_corpus(speakers=3, utterances=6)
    values = {"downstream_expert.datarc.corpus": corpus.folder, "downstream_expert.datarc.phones": corpus.phones}
    values |= {"downstream_expert.datarc.num_workers": 0, "downstream_expert.datarc.train_batch_size": 4}
    values |= dict.fromkeys((f"runner.{key}" for key in ("total_steps", "eval_step", "save_step", "log_step")), 7)
    override = ",,".join(f"config.{key}={value}" for key, value in values.items())
    command = ["-m", "train", "-u", "saat_ours_untrained", "-g", str(tiny_config), "-d", "phoneme_1hidden"]
    assert main([*command, "-s", selection, "-p", "out", "--seed", "5", "-o", override]) == 0
    states = torch.load("out/states-7.ckpt", weights_only=False)

    labelled = LabelledCorpus("phone", DataConfig(**corpus.datarc()), 480)
    upstream, probe = hub.saat_ours_untrained(model_config=str(tiny_config)), PROBES["phoneme_1hidden"]
    layers = defaultdict(dict)
    extractor = Extractor(upstream, selection, None if selection == "last_hidden_state" else [0, 1, 2])
    samples = {}
    for utterance in extractor(labelled.utterances, progress=False):
        samples[utterance.id] = utterance.samples
        for layer, state in enumerate(utterance.states):
            layers[layer][utterance.id] = state
    split = partial(SplitFeatures, labelled, probe, layers=list(layers.values()), samples=samples)
    train, dev = (split(labelled.splits[name], name=name) for name in ("train", "dev"))
    make = partial(first_head, probe, 24, len(labelled.classes), ModelrcConfig(), len(layers), 5)
    options = dict(lrs=[1e-3], steps=7, batch_size=4, seed=5, eval_every=7, exact=True)
    (result,) = train_heads(make, train, dev, len(labelled.classes), **options)
    for key, value in result.head.head.state_dict().items():
        assert torch.allclose(value, states["Downstream"][f"head.{key}"], atol=1e-5), key
    if selection == "hidden_states":
        assert torch.allclose(result.head.weights, states["Featurizer"]["weights"], atol=1e-5)
        assert result.head.weights.abs().max() > 1e-3
