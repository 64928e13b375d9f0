"""`saat probe` and `run_probes`: what they find, write, keep and refuse."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saat.cli import main
from saat.downstream import fast_probes
from saat.downstream.extraction import Extractor
from saat.downstream.fast_probes import Settings, run_probes
from saat.downstream.probe import PROBES
from saat.errors import SaatError
from saat.upstream import checkpoint
from saat.upstream.config import model_config, read_yaml
from saat.upstream.encoder import AudioAlbert

KEYS = {"upstream", "checkpoint", "checkpoint_sha256", "probe", "layer", "seed", "split", "accuracy", "dev", "chance",
        "lr", "best_step", "steps", "classes", "utterances", "seconds"}  # fmt: skip


@pytest.fixture
def make_checkpoint(tiny_config, tmp_path):
    def make(name: str = "states-3.ckpt", seed: int = 0, **audio) -> str:
        overrides = read_yaml(tiny_config)
        overrides["audio"] |= {"cmvn": False, **audio}
        config = model_config("saat_ours", (overrides, "the test"))
        torch.manual_seed(seed)
        states = {"Transformer": AudioAlbert(config).state_dict(), "Upstream_Config": config.to_dict(), "Step": 3}
        checkpoint.save(tmp_path / name, states)
        return str(tmp_path / name)

    return make


@pytest.fixture
def settings(make_corpus, tmp_path):
    corpus = make_corpus(speakers=4, utterances=8)
    folder, phones = str(corpus.folder), str(corpus.phones)
    kept = str(tmp_path / "features")
    return Settings([folder], [folder], phones, lrs=(1e-2,), steps=4, pooled_steps=4, features=kept)


@pytest.fixture
def other(settings, tmp_path):
    """One of the speakers elsewhere, as another corpus."""
    moved = tmp_path / "other" / "104"
    moved.parent.mkdir()
    (tmp_path / "audio" / "104").rename(moved)
    return str(moved.parent)


def test_all_probes(settings, make_checkpoint, other):
    ckpt = make_checkpoint()
    rows = run_probes("saat_ours", ckpt, replace(settings, seeds=2, test_other=[other]), progress=False)
    assert all(set(row) == KEYS for row in rows)
    found = [(row["probe"], row["seed"], row["split"]) for row in rows]
    expected = [
        (probe, seed, split)
        for probe in PROBES
        for seed in (0, 1)
        for split in (("test", "test-other") if probe.startswith("phoneme") else ("test",))
    ]
    assert found == expected
    for row in rows:
        assert row["upstream"] == "saat_ours" and row["checkpoint"] == ckpt and len(row["checkpoint_sha256"]) == 64
        assert 0 <= row["accuracy"] <= 1 and 0 < row["chance"] < 1 and row["layer"] == "last"
        assert (row["lr"], row["best_step"], row["steps"]) == (1e-2, 4, 4)
        assert row["utterances"] == (8 if row["split"] == "test-other" else 3)
        assert row["classes"] == (4 if row["probe"].startswith("phoneme") else 3)
    again = run_probes("saat_ours", ckpt, replace(settings, seeds=2, test_other=[other]), progress=False)
    assert [{**a, "seconds": 0} for a in again] == [{**b, "seconds": 0} for b in rows]


def test_the_rate_is_chosen_on_dev_alone(settings, make_checkpoint, monkeypatch):
    settings = replace(settings, probes=("phoneme_1hidden",), lrs=(1e-30, 1e-2), steps=60)
    ckpt = make_checkpoint()
    (row,) = run_probes("saat_ours", ckpt, settings, progress=False)
    alone = [run_probes("saat_ours", ckpt, replace(settings, lrs=(lr,)), progress=False)[0] for lr in settings.lrs]
    assert row["lr"] == 1e-2 and alone[1]["dev"] > alone[0]["dev"]
    assert {**row, "seconds": 0} == {**alone[1], "seconds": 0}
    # Test accuracy has no say: the rate stays when test says the opposite.
    whole = fast_probes.evaluate
    monkeypatch.setattr(
        fast_probes, "evaluate", lambda *args: {**(found := whole(*args)), "accuracy": 1 - found["accuracy"]}
    )
    (other,) = run_probes("saat_ours", ckpt, settings, progress=False)
    assert other["lr"] == 1e-2 and other["accuracy"] == pytest.approx(1 - row["accuracy"])


def test_extracted_once_for_all(settings, make_checkpoint, monkeypatch):
    calls, whole = [], Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, *a, **k: calls.append(1) or whole(self, *a, **k))
    first, second = make_checkpoint("states-1.ckpt"), make_checkpoint("states-2.ckpt", seed=1)
    run_probes("saat_ours", first, settings, progress=False)
    assert len(calls) == 1
    run_probes("saat_ours_local", first, replace(settings, seeds=2, probes=("speaker_frame",)), progress=False)
    assert len(calls) == 1
    run_probes("saat_ours", second, settings, progress=False)
    assert len(calls) == 2
    for name, extracted in (("saat_ours_untrained", 1), ("saat_mel", 1)):
        # They take the shape of the checkpoint, or its features, and nothing of its weights.
        for ckpt in (first, second):
            (row,) = run_probes(name, ckpt, replace(settings, probes=("speaker_frame",)), progress=False)
            assert row["upstream"] == name
        assert len(calls) == 2 + extracted
        calls.pop()


def test_a_checkpoint_of_other_features(settings, make_checkpoint):
    rows = run_probes("saat_ours", make_checkpoint(stack=1), settings, progress=False)
    assert len(rows) == 4


def test_any_upstream_of_s3prl(settings):
    (row,) = run_probes("fbank", None, replace(settings, probes=("phoneme_1hidden",)), progress=False)
    assert row["checkpoint"] is None and row["checkpoint_sha256"] is None and row["upstream"] == "fbank"


def test_every_layer(settings, make_checkpoint):
    settings, ckpt = replace(settings, probes=("phoneme_1hidden",), steps=20), make_checkpoint()
    rows = run_probes("saat_ours", ckpt, replace(settings, layer="all"), progress=False)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    (one,) = run_probes("saat_ours", ckpt, replace(settings, layer="1"), progress=False)
    assert one["layer"] == 1 and one["accuracy"] == rows[1]["accuracy"]
    (last,) = run_probes("saat_ours", ckpt, settings, progress=False)
    assert last["layer"] == "last" and last["accuracy"] == rows[2]["accuracy"]
    for layer in ("3", "-1", "first"):
        with pytest.raises(SaatError, match=f"--layer: saat_ours has hidden states 0 to 2, no '{layer}'"):
            run_probes("saat_ours", ckpt, replace(settings, layer=layer), progress=False)


def test_weighted_sum(settings, make_checkpoint):
    rows = run_probes("saat_ours", make_checkpoint(), replace(settings, weighted_sum=True), progress=False)
    assert len(rows) == 4
    for row in rows:
        assert row["layer"] == "weighted-sum" and set(row) == KEYS | {"layer_weights"}
        assert len(row["layer_weights"]) == 3 and sum(row["layer_weights"]) == pytest.approx(1)
        assert row["layer_weights"] != pytest.approx([1 / 3] * 3, abs=1e-6)


def test_without_phones_there_are_no_phoneme_probes(settings, make_checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        rows = run_probes("saat_ours", make_checkpoint(), replace(settings, phones=None), progress=False)
    assert [row["probe"] for row in rows] == ["speaker_utterance", "speaker_frame"]
    assert "no phone labels (--phones): the phoneme probes are left out" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"probes": ("speaker_fram",)}, "unknown probe 'speaker_fram': did you mean 'speaker_frame'"),
        ({"phones": None, "probes": ("phoneme_1hidden",)}, "no probe is left: pass --phones"),
        ({"speaker": []}, "no corpus for the speaker probes: pass --speaker or --corpus"),
        ({"phoneme": []}, "no corpus for the phoneme probes"),
        ({"phones": None, "test_other": ["x"]}, "--test-other is for the phoneme probes"),
        ({"seeds": 0}, "--seeds must be at least 1, not 0"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"lrs": ()}, "--lrs must be positive numbers, not none"),
        ({"lrs": (1e-3, -1.0)}, "--lrs must be positive numbers, not 0.001, -1.0"),
        ({"dtype": "int8"}, "--dtype must be one of float16, float32, not 'int8'"),
        ({"weighted_sum": True, "layer": "2"}, "leave out --layer"),
        ({"speaker": ["/nowhere"]}, "/nowhere"),
        ({"phones": "/nowhere.txt"}, "no such file or folder: /nowhere.txt"),
    ],
)
def test_settings_that_cannot_be(settings, make_checkpoint, change, message):
    with pytest.raises(SaatError, match=re.escape(message)):
        run_probes("saat_ours", make_checkpoint(), replace(settings, **change), progress=False)


def test_a_batch_is_of_the_probes_on_tokens(settings, make_checkpoint, monkeypatch):
    sizes = []
    train = fast_probes.train_heads

    def spy(first, data, *args, batch_size, **kwargs):
        sizes.append((data.pooled is not None, batch_size))
        return train(first, data, *args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(fast_probes, "train_heads", spy)
    run_probes("saat_ours", make_checkpoint(), replace(settings, batch=3), progress=False)
    assert sizes == [(True, 16), (False, 3), (False, 3), (False, 3)]


def test_upstreams_that_cannot_be(settings, tmp_path):
    for upstream, ckpt, message in (
        ("saat_our", None, "unknown upstream 'saat_our': did you mean 'saat_ours'"),
        ("saat_ours", str(tmp_path / "gone.ckpt"), "-k: no checkpoint at .*gone.ckpt"),
        ("saat_ours_local", None, "saat_ours_local: no checkpoint: pass -k"),
        ("audio_albert_local", None, "audio_albert_local: no checkpoint: pass -k"),
        ("saat_ours", None, "saat publish"),
    ):
        with pytest.raises(SaatError, match=message):
            run_probes(upstream, ckpt, settings, progress=False)


def test_one_speaker(make_corpus, settings, make_checkpoint, tmp_path):
    one = str(tmp_path / "audio" / "101")
    with pytest.raises(SaatError, match=r"one speaker \(101\) is all there is in .*several; --probes phoneme_1hidden"):
        run_probes("saat_ours", make_checkpoint(), replace(settings, speaker=[one]), progress=False)


def test_speakers_that_a_probe_was_trained_on_are_no_second_test(settings, make_checkpoint, tmp_path):
    with pytest.raises(SaatError, match=r"2 of .*audio/102, .*104 are in the train or dev split: 102, 104\."):
        inside = [str(tmp_path / "audio" / speaker) for speaker in ("102", "104")]
        run_probes("saat_ours", make_checkpoint(), replace(settings, test_other=inside), progress=False)


def test_the_command(settings, make_checkpoint, other, tmp_path, capsys):
    out = tmp_path / "probes.json"
    command = ["probe", "-u", "saat_ours", "-k", make_checkpoint(), "--corpus", *settings.speaker]
    command += ["--phones", settings.phones, "--test-other", other, "--seeds", "2", "--steps", "2"]
    command += ["--features", settings.features, "--device", "cpu", "--json", str(out)]
    assert main([*command, "--probes", "speaker_frame", "phoneme_2hidden"]) == 0
    rows = json.loads(out.read_text())
    assert all(set(row) == KEYS for row in rows) and len(rows) == 6
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.split("|")[1].strip() == "probe" and len(lines) == 3
    accuracies = [100 * row["accuracy"] for row in rows if row["split"] == "test-other"]
    mean, deviation = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1]) / 2**0.5
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["phoneme_2hidden", "last", "test-other", f"{mean:.1f} ± {deviation:.1f}"]

    before = out.read_bytes()
    assert main(command) == 2 and "probes.json is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
    weighted = [*command[:-2], "--weighted-sum", "--seeds", "1", "--probes", "speaker_frame", "--dtype", "float16"]
    at = weighted.index("--test-other")
    assert main(weighted[:at] + weighted[at + 2 :]) == 0
    text = capsys.readouterr().out
    assert "weighted-sum" in text and re.search(r"speaker_frame, seed 0: weights of .* from 0: 0\.\d\d 0\.\d\d 0", text)


def test_where_json_cannot_be_written_nothing_is_trained(settings, make_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fast_probes, "run_probes", None)
    (tmp_path / "file").write_text("")
    command = ["probe", "-u", "saat_ours", "-k", make_checkpoint(), "--corpus", *settings.speaker]
    assert main([*command, "--json", str(tmp_path / "file" / "below" / "probes.json")]) == 2
    assert "--json: cannot write into" in capsys.readouterr().err


def test_room_for_all_corpora_is_looked_for_before_the_first_is_extracted(
    settings, make_checkpoint, other, monkeypatch
):
    usage, ckpt = shutil.disk_usage("/"), make_checkpoint()
    one = replace(settings, probes=("speaker_frame",))
    run_probes("saat_ours", ckpt, one, progress=False)
    needed = sum(path.stat().st_size for path in Path(settings.features).rglob("*.bin"))
    shutil.rmtree(settings.features)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + 1))
    with pytest.raises(SaatError, match="--features: the features of"):
        run_probes("saat_ours", ckpt, replace(settings, test_other=[other]), progress=False)
    assert not list(Path(settings.features).rglob("*.bin"))
    run_probes("saat_ours", ckpt, one, progress=False)
    run_probes("saat_ours", ckpt, replace(settings, probes=("speaker_frame", "phoneme_1hidden")), progress=False)


def test_options_of_the_upstream_are_its_own_features(settings, make_checkpoint, tmp_path):
    ckpt, options = make_checkpoint(), tmp_path / "options.yaml"
    options.write_text("quantize: int8\n")
    settings = replace(settings, probes=("speaker_frame",))
    rows = run_probes("saat_ours", ckpt, settings, progress=False)
    small = run_probes("saat_ours", ckpt, replace(settings, upstream_config=str(options)), progress=False)
    assert len(list(Path(settings.features).glob("saat_*"))) == 2 and rows[0]["classes"] == small[0]["classes"]
    with pytest.raises(SaatError, match="-g: no file"):
        run_probes("saat_ours", ckpt, replace(settings, upstream_config="nowhere.yaml"), progress=False)
