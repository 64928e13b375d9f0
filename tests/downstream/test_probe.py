"""Heads, loss and metric, and the expert's data loaders, one call at a time."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from saat.downstream.config import DataConfig, ModelrcConfig
from saat.downstream.data import LabelledCorpus, shard, train_batches
from saat.downstream.probe import PROBES, Head, find_probe, record, summarise
from saat.errors import SaatError

DIM, CLASSES = 6, 5


class Logger:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, global_step):
        self.scalars[name, global_step] = value


def random_batch(probe, lengths, more_labels=0):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, DIM, generator=generator) for n in lengths]
    shape = [() if probe.labels == "speaker" else (n + more_labels,) for n in lengths]
    return features, [torch.randint(CLASSES, size, generator=generator) for size in shape]


def test_heads():
    sizes = {name: [] for name in PROBES}
    for name, probe in PROBES.items():
        head = Head(probe, DIM, CLASSES, ModelrcConfig(hidden_size=7))
        sizes[name] = [type(layer).__name__[0] + str(getattr(layer, "out_features", "")) for layer in head.layers]
    assert sizes == {
        "speaker_utterance": ["L5"],
        "speaker_frame": ["L5"],
        "phoneme_1hidden": ["L7", "R", "L5"],
        "phoneme_2hidden": ["L7", "R", "L7", "R", "L5"],
    }
    with pytest.raises(SaatError, match="unknown probe 'speaker_fame': did you mean 'speaker_frame'"):
        find_probe("speaker_fame")


@pytest.mark.parametrize("name", PROBES)
def test_loss_and_accuracy_are_means_over_what_is_real(name):
    """A batch of unequal utterances gives what they give one at a time, weighted by what each has to predict."""
    probe = PROBES[name]
    torch.manual_seed(0)
    head = Head(probe, DIM, CLASSES, ModelrcConfig(hidden_size=8)).double()
    features, labels = random_batch(probe, [9, 2, 30, 5])
    features = [f.double() for f in features]
    together, alone = defaultdict(list), defaultdict(list)
    record(together, head(features, labels), 4, 46, CLASSES)
    losses, counts = [], []
    for feature, label in zip(features, labels, strict=True):
        # The definition, written out.
        x = feature.mean(0, keepdim=True) if probe.pooled else feature
        targets = label.expand(len(x))
        losses.append(F.cross_entropy(head.layers(x), targets, reduction="sum"))
        counts.append(len(x))
        record(alone, head([feature], [label]), 1, len(feature), CLASSES)
    assert torch.allclose(head(features, labels).loss, sum(losses) / sum(counts))
    assert sum(counts) == (4 if probe.pooled else 46)
    first, second = summarise(together, majority=1), summarise(alone, majority=1)
    assert first == pytest.approx(second)
    assert first["utterances"] == 4 and first["tokens"] == 46


def test_labels_are_cut_to_the_features_and_never_padded():
    probe = PROBES["phoneme_1hidden"]
    head = Head(probe, DIM, CLASSES, ModelrcConfig(hidden_size=8))
    features, labels = random_batch(probe, [4, 7], more_labels=1)
    x, targets = head.inputs(features, labels)
    assert len(x) == len(targets) == 11
    assert targets.tolist() == labels[0][:4].tolist() + labels[1][:7].tolist()
    x, targets = head.inputs([torch.ones(9, DIM)], [torch.zeros(7, dtype=torch.int64)])
    assert len(x) == len(targets) == 7


def contents(loader):
    return [([wav.numpy().tobytes() for wav in wavs], [label.tolist() for label in labels]) for wavs, labels in loader]


def test_train_batches_depend_on_seed_and_epoch_only(make_corpus, make_expert):
    corpus = make_corpus(speakers=4, utterances=6)
    experts = [
        make_expert("phoneme_1hidden", corpus.datarc(num_workers=workers, train_batch_size=5), seed=seed)
        for workers, seed in ((0, 1), (2, 1), (0, 2))
    ]
    first, second = (contents(expert.get_dataloader("train", epoch=3)) for expert in experts[:2])
    assert first == second
    others = [experts[0].get_dataloader("train", epoch=4), experts[2].get_dataloader("train", epoch=3)]
    assert all(contents(other) != first for other in others)
    seen = sorted(wav for wavs, _ in first for wav in wavs)
    assert seen == sorted(wav for wavs, _ in contents(others[0]) for wav in wavs) and len(set(seen)) == 16
    assert [len(wavs) for wavs, _ in first] == [5, 5, 5, 1] and len(experts[0].get_dataloader("train")) == 4


def test_eval_batches_are_sorted_by_length(make_corpus, make_expert):
    expert = make_expert("speaker_frame", make_corpus().datarc(eval_batch_size=3)).eval()
    for split in ("train", "dev"):
        lengths = [len(wav) for wavs, _ in expert.get_dataloader(split) for wav in wavs]
        assert lengths == sorted(lengths, reverse=True) and len(lengths) == len(expert.corpus.splits[split])


def test_shards_are_disjoint_and_equal(monkeypatch):
    batches = train_batches(22, 2, seed=0, epoch=0)
    monkeypatch.setattr("saat.downstream.data.is_initialized", lambda: True)
    monkeypatch.setattr("saat.downstream.data.get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("saat.downstream.data.get_rank", lambda rank=rank: rank)
        shares.append(shard(batches))
    assert [len(share) for share in shares] == [2] * 4
    indices = [i for share in shares for batch in share for i in batch]
    assert len(set(indices)) == len(indices) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_turns_out_bad_costs_its_batch_nothing(make_corpus, make_expert, caplog, workers):
    corpus = make_corpus(speakers=4, utterances=5)
    datarc = corpus.datarc(num_workers=workers, train_batch_size=1)
    expert = make_expert("speaker_utterance", datarc)
    bad = expert.corpus.splits["train"][0]
    soundfile.write(bad.path.with_suffix(".wav"), np.full(bad.samples, np.nan), 16000, subtype="FLOAT")
    bad.path.with_suffix(".wav").rename(bad.path)  # its header is fine
    for _ in range(2):
        assert len(contents(expert.get_dataloader("train"))) == 11  # a batch that holds nothing else is left out
    assert caplog.text.count("skipped 1 audio files that turned out bad") == 1
    assert f"{bad.path}: has NaN or infinite samples" in caplog.text
    strict = make_expert("speaker_utterance", {**datarc, "strict": True})
    with pytest.raises(SaatError, match="1 audio files that turned out bad: .*NaN.*strict=False"):
        contents(strict.get_dataloader("train"))
    for utterance in expert.corpus.splits["train"]:
        utterance.path.write_bytes(b"")
    with pytest.raises(SaatError, match="none of the 12 audio files can be used: "):
        contents(expert.get_dataloader("train"))


def run_split(expert, split, records, predict=None):
    """What S3PRL's runner does with a batch, with made-up features."""
    for wavs, labels in expert.get_dataloader(split):
        features = [torch.randn(round(len(wav) / 480), DIM) for wav in wavs]
        expert(split, features, labels, records=records)


def test_best_dev_survives_in_the_state(make_corpus, make_expert, tmp_path):
    corpus = make_corpus()
    expert, logger = make_expert("speaker_frame", corpus.datarc()), Logger()

    def log(expert, correct):
        records = {"loss": [10.0], "correct": [correct], "targets": [torch.tensor([4, 2, 2, 2])]}
        records.update(utterances=[2], tokens=[10])
        return expert.log_records("dev", records=records, logger=logger, global_step=7)

    assert log(expert, 5) == ["best-states-dev.ckpt"] and log(expert, 5) == [] and log(expert, 4) == []
    assert logger.scalars["speaker_frame/dev-accuracy", 7] == 0.4
    torch.save(expert.state_dict(), tmp_path / "state.pt")
    resumed = make_expert("speaker_frame", corpus.datarc())
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert log(resumed, 5) == [] and log(resumed, 6) == ["best-states-dev.ckpt"]
    lines = (tmp_path / "log.log").read_text().splitlines()
    assert lines[0] == "speaker_frame/dev|step:7|accuracy:0.5000|loss:1.0000|best" and len(lines) == 5


def test_weights_of_other_classes_are_refused(make_corpus, make_expert, tmp_path):
    corpus = make_corpus(speakers=3)
    state = make_expert("speaker_frame", corpus.datarc()).state_dict()
    (corpus.folder / "103").rename(corpus.folder / "104")
    for path in (corpus.folder / "104" / "7").iterdir():
        path.rename(path.with_name(path.name.replace("103", "104")))
    with pytest.raises(SaatError, match=r"knows 3 classes \(101, 102, 103 …\), the corpus has 3 \(101, 102, 104 …\)"):
        make_expert("speaker_frame", corpus.datarc()).load_state_dict(state)


@pytest.mark.parametrize("name", PROBES)
def test_evaluation_is_written_down(make_corpus, make_expert, tmp_path, name):
    corpus = make_corpus(speakers=4, utterances=6)
    expert = make_expert(name, corpus.datarc(), mode="evaluate", evaluate_split="test").eval()
    records = defaultdict(list)
    run_split(expert, "test", records)
    assert expert.log_records("test", records=records, logger=Logger(), global_step=0) == []
    result = json.loads((tmp_path / "accuracy-test.json").read_text())
    test = expert.corpus.splits["test"]
    tokens = sum(round(u.samples / 480) for u in test)
    assert result["probe"] == name and result["split"] == "test" and result["step"] == 0
    assert (result["utterances"], result["tokens"], result["classes"]) == (len(test), tokens, 4)
    # Chance: what always answering the training split's most frequent class would give.
    train, targets = np.zeros(4, int), []
    for split in ("train", "test"):
        for u in expert.corpus.splits[split]:
            label = expert.corpus.labels(u, u.samples)
            times = 1 if name == "speaker_utterance" else round(u.samples / 480)
            label = label.expand(times) if label.dim() == 0 else label
            if split == "train":
                np.add.at(train, label.numpy(), 1)
            else:
                targets += label.tolist()
    assert result["chance"] == pytest.approx(targets.count(int(train.argmax())) / len(targets))


def test_the_most_frequent_class_is_counted_in_what_is_predicted(make_corpus):
    corpus = LabelledCorpus("speaker", DataConfig(**make_corpus(speakers=2).datarc()), 480)
    one, two = (next(u for u in corpus.splits["train"] if u.speaker == speaker) for speaker in ("101", "102"))
    corpus.splits["train"] = [replace(one, samples=160000), two, two]
    assert corpus.majority(pooled=True) == 1 and corpus.majority(pooled=False) == 0
