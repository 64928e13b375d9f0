"""The in-memory route: what the experts compute, and nothing else."""

import logging
from collections import defaultdict
from importlib import import_module

import numpy as np
import pytest
import soundfile
import torch
from s3prl import hub

from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.downstream.fast import extract, train_probe
from saat.downstream.probe import PROBES
from saat.errors import SaatError


@pytest.fixture
def everything(make_corpus, mel_config):
    corpus = make_corpus(speakers=4, utterances=8)
    upstream = hub.saat_mel(model_config=str(mel_config))
    split = read_corpus(DataConfig(corpus=str(corpus.folder)), 480)
    utterances = [utterance for group in split.values() for utterance in group]
    return corpus, upstream, utterances, extract(upstream, utterances, progress=False)


def test_features_are_those_of_the_runner(everything):
    _, upstream, utterances, extracted = everything
    assert extracted.stride == 480 and extracted.dim == 72 and len(extracted.features) == 32
    small = extract(upstream, utterances, batch_seconds=0.1, progress=False)  # one utterance a batch
    for utterance in utterances:
        tokens = extracted.features[utterance.id]
        assert tokens.shape == (round(utterance.samples / 480), 72) and tokens.dtype == torch.float32
        assert extracted.samples[utterance.id] == utterance.samples
        assert torch.allclose(tokens, small.features[utterance.id], atol=1e-4)
    assert extracted.audio_seconds == pytest.approx(sum(u.samples for u in utterances) / 16000)
    assert extracted.x_real_time == pytest.approx(extracted.audio_seconds / extracted.seconds)


@pytest.mark.parametrize("name", PROBES)
def test_accuracy_is_that_of_the_expert_with_the_same_weights(everything, tmp_path, name):
    corpus, upstream, _, extracted = everything
    options = dict(steps=120, batch_size=8, lr=1e-2, eval_every=20, progress=False)
    modelrc = {"hidden_size": 32}
    result = train_probe(name, extracted, corpus.datarc(), modelrc, **options)
    assert result["test"] > (0.9 if PROBES[name].labels == "speaker" else 0.75) > result["chance"]
    assert result["best_step"] % 20 == 0 and result["dev"] > result["chance"]

    expert = import_module(f"s3prl.downstream.{name}.expert").DownstreamExpert(
        72, 480, {"datarc": corpus.datarc(eval_batch_size=3), "modelrc": modelrc}, str(tmp_path), mode="evaluate"
    )
    expert.head.load_state_dict(result["head"].state_dict())
    expert.eval()
    records = defaultdict(list)
    for wavs, labels in expert.get_dataloader("test"):
        with torch.no_grad():
            states = upstream(wavs)["last_hidden_state"]
            features = [state[: round(len(wav) / 480)] for wav, state in zip(wavs, states, strict=True)]
            expert("test", features, labels, records=records)
    assert sum(records["correct"]) / sum(map(int, map(torch.sum, records["targets"]))) == pytest.approx(result["test"])

    again = train_probe(name, extracted, corpus.datarc(), modelrc, **options)
    assert again["test"] == result["test"] and again["best_step"] == result["best_step"]


def test_bad_files_are_left_out(everything, caplog):
    corpus, upstream, utterances, _ = everything
    nan = np.full(8000, np.nan)
    for utterance in utterances[:2]:
        soundfile.write(utterance.path.with_suffix(".wav"), nan, 16000, subtype="FLOAT")
        utterance.path.with_suffix(".wav").rename(utterance.path)
    with caplog.at_level(logging.WARNING):
        extracted = extract(upstream, utterances, progress=False)
    assert len(extracted.features) == 30 and "skipped 2 audio files that turned out bad" in caplog.text
    result = train_probe("speaker_frame", extracted, corpus.datarc(), steps=2, progress=False)
    assert result["best_step"] == 2
    with pytest.raises(SaatError, match="no features: none of the 2 audio files can be used"):
        extract(upstream, utterances[:2], progress=False)
    extracted.features.clear()
    with pytest.raises(SaatError, match="no utterance of the train split has features"):
        train_probe("speaker_frame", extracted, corpus.datarc(), steps=2, progress=False)


def test_weighted_sum_of_hidden_states(make_corpus, tiny_config):
    corpus = make_corpus(speakers=2, utterances=3)
    upstream = hub.saat_ours_untrained(model_config=str(tiny_config))
    split = read_corpus(DataConfig(corpus=str(corpus.folder)), 480)
    utterances = split["train"]
    extracted = extract(upstream, utterances, feature_selection="hidden_states", progress=False)
    wav = torch.from_numpy(soundfile.read(utterances[0].path, dtype="float32")[0])
    with torch.no_grad():
        states = upstream([wav])["hidden_states"]
    tokens = extracted.features[utterances[0].id]
    assert torch.allclose(tokens, torch.stack(states).mean(0)[0, : len(tokens)], atol=1e-5)
