"""What a person watches: metrics, TensorBoard, held-out utterances, attention maps; and precision."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saat.errors import SaatError
from saat.pretrain.held_out import HeldOut, split
from saat.pretrain.images import GAP, attention_maps, maps_image
from saat.pretrain.manifest import load_corpus
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.watch import forget_after
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config

from .conftest import TINY, same

TRAINABLE = [name for name, entry in REGISTRY.items() if entry.attention is not None]
OFTEN = "config.runner.log_step=2,,config.runner.eval_step=3,,config.pretrain_expert.datarc.held_out=3"


def lines(expdir):
    return [json.loads(line) for line in (expdir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_and_events(run, tmp_path):
    exp = tmp_path / "exp"
    run(exp, o=OFTEN)
    logged = lines(exp)
    assert [line["step"] for line in logged] == [2, 3, 4, 6, 6]
    training = [line for line in logged if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    for line in training:
        assert 0 < line["loss"] < 5 and line["tokens_per_second"] > 0 and 0 <= line["waiting_for_data"] <= 1
        assert line["processor_seconds"] > 0
        assert line["skipped_steps"] == 0 and line["lr"] > 0 and line["gradient_norm"] > 0
        # A token is 30 ms.
        assert line["times_real_time"] == pytest.approx(0.03 * line["tokens_per_second"], rel=0.05)
    assert [line["step"] for line in logged if "held_out_loss" in line] == [3, 6]
    events = EventAccumulator(str(exp)).Reload()
    scalars = events.Scalars("saat_ours/held-out-loss")
    assert [event.step for event in scalars] == [3, 6]
    assert scalars[1].value == pytest.approx(logged[-1]["held_out_loss"])
    assert "saat_ours/train-tokens-per-second" in events.Tags()["scalars"]
    assert [event.step for event in events.Images("saat_ours/attention")] == [3, 6]
    start = json.loads((exp / "starts.jsonl").read_text())
    assert start["corpus"]["utterances"] == 7 and len(start["corpus"]["fingerprint"]) == 64 and start["processes"] == 1


def test_a_resumed_run_writes_later_lines_anew(run, tmp_path):
    """As after kill -9: lines of steps after the checkpoint, the last one half written."""
    exp = tmp_path / "exp"
    whole = run(tmp_path / "whole", o=OFTEN)
    run(exp, o=f"{OFTEN},,config.runner.save_step=3,,config.runner.total_steps=6")
    (exp / "states-6.ckpt").unlink()
    with (exp / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    resumed = run(exp, "-a", o=OFTEN)
    keys = ("step", "loss", "held_out_loss", "gradient_norm")
    kept = [[{key: line.get(key) for key in keys} for line in lines(folder)] for folder in (exp, tmp_path / "whole")]
    assert kept[0] == kept[1]
    states = [torch.load(path, weights_only=True) for path in (resumed, whole)]
    assert same(states[0]["Transformer"], states[1]["Transformer"])


def test_processor_time_before_a_stop_counts(run, tmp_path):
    """Of the steps since the last log: the checkpoint has it."""
    first = run(tmp_path / "exp", o="config.runner.log_step=5,,config.runner.save_step=4")
    states = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)
    assert states["Processor_Seconds"] > 0
    torch.save(states | {"Processor_Seconds": 1000.0}, tmp_path / "exp" / "states-4.ckpt")
    first.unlink()
    run(tmp_path / "exp", "-a")
    spent = [line["processor_seconds"] for line in lines(tmp_path / "exp") if "loss" in line]
    assert len(spent) == 2 and spent[0] > 1000 and spent[1] < 1000


def test_forget_after(tmp_path):
    file = tmp_path / "metrics.jsonl"
    forget_after(file, 3)
    assert not file.exists()
    file.write_text('{"step": 1}\n{"step": 4}\nrubbish\n[]\n{"step": 2}\n{"step": 3}')
    forget_after(file, 3)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_held_out_utterances(corpus, tmp_path):
    """Never trained on, the same whatever the corpus's place; the loss is the same at every look and on any ranks."""
    everything = load_corpus([corpus], 480)
    rest, held = split(everything, 3, seed=1)
    assert sorted(rest.paths + held.paths) == everything.paths and len(held.paths) == 3
    assert split(everything, 3, seed=1)[1].paths == held.paths != split(everything, 3, seed=2)[1].paths
    assert rest.samples.tolist() == [int(everything.samples[everything.paths.index(path)]) for path in rest.paths]
    config = model_config("saat_ours", (TINY["model"], "test"))
    datarc = {"corpus": [str(corpus)], "train_batch_size": 2, "held_out": 3, "num_workers": 0}
    expert = UpstreamPretrainExpert(datarc, config, "cpu").eval()
    assert expert.held_out_errors() == expert.held_out_errors()
    whole = expert.held_out_errors()
    parts = []
    for rank in range(2):
        expert.held_out = HeldOut(expert.held_out.corpus, config, 1, expert.seed)
        parts.append(expert.held_out_errors(rank, 2))
    assert sum(p[0] for p in parts) == pytest.approx(whole[0], rel=1e-5) and sum(p[1] for p in parts) == whole[1]
    with pytest.raises(SaatError, match="held_out: 10 of 10 utterances leaves none to train on"):
        UpstreamPretrainExpert({**datarc, "held_out": 10}, config, "cpu")


@pytest.mark.parametrize("upstream", TRAINABLE)
def test_attention_maps(corpus, upstream):
    config = model_config(upstream, (TINY["model"], "test"))
    expert = UpstreamPretrainExpert({"corpus": [str(corpus)], "num_workers": 0}, config, "cpu").eval()
    features = expert.features([torch.randn(16000)])[0][0, :25]
    maps = attention_maps(expert.model.Transformer, features)
    layers = 2 if REGISTRY[upstream].input_dependent else 1
    assert maps.shape == (layers, 12, 25, 25)
    torch.testing.assert_close(maps.sum(-1), torch.ones(layers, 12, 25))
    image = expert.attention_images()["attention"]
    assert image.dtype == np.uint8 and image.shape[0] == 3 and image.shape[1] == layers * image.shape[2] // 12


def test_maps_image_shows_queries_down_and_keys_right():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 3, 0] = 0.2  # the last query looks at the first key
    maps[0, 1] = 0.1
    image = maps_image(maps).astype(int).sum(0)
    assert image.shape == (4 + GAP, 2 * (4 + GAP))
    bright = np.argwhere(image[:4, :4] == image.max())
    assert bright.tolist() == [[3, 0]] and (image[:4, 6:10] == image.max()).all()
    assert maps_image(torch.rand(1, 1, 500, 500)).shape == (3, 96 + GAP, 96 + GAP)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("upstream", ["saat_ours", "saat_qk", "saat_xbox", "saat_sparse_fixed", "saat_syn_dense"])
def test_low_precision_is_close_and_resumes_exactly(run, tmp_path, upstream, precision):
    full = f"{OFTEN},,config.runner.save_step=3"
    o = f"{full},,config.runner.precision={precision}"
    run(tmp_path / "full", upstream=upstream, o=full)
    whole = run(tmp_path / "low", upstream=upstream, o=o)
    for a, b in zip(lines(tmp_path / "low"), lines(tmp_path / "full"), strict=True):
        key = "loss" if "loss" in b else "held_out_loss"
        assert a[key] == pytest.approx(b[key], rel=0.02), (key, a["step"])
    resumed = run(tmp_path / "rest", "-e", tmp_path / "low" / "states-3.ckpt")
    states = [torch.load(path, weights_only=True) for path in (resumed, whole)]
    for key in ("Transformer", "SpecHead", "Optimizer", "Scaler"):
        assert same(states[0][key], states[1][key]), key
    assert bool(states[0]["Scaler"]) == (precision == "float16")
    assert all(value.dtype == torch.float32 for value in states[0]["Transformer"].values())


def test_float16_skips_steps_that_overflow_and_lowers_its_scale(run, tmp_path, monkeypatch):
    real = torch.amp.GradScaler.__init__
    monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", lambda self, *a, **k: real(self, *a, **{**k, "init_scale": 2.0**40})
    )
    path = run(tmp_path / "exp", o="config.runner.precision=float16,,config.runner.total_steps=4")
    states = torch.load(path, weights_only=True)
    assert states["Skipped_Steps"] == 4 and states["Scaler"]["scale"] == 2.0**36
    assert all(bool(value.isfinite().all()) for value in states["Transformer"].values())
