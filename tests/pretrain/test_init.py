"""`-i`: a new run whose weights start from a checkpoint."""

import json

import pytest
import torch

from saat.analysis.heads_figure import initial_and_trained
from saat.errors import SaatError
from saat.pretrain import cli
from saat.sharing.published import file_sha256
from saat.sharing.record import pretraining
from saat.upstream import checkpoint

from .conftest import same, states_of

# The first learning rate of a long warm-up moves nothing that float32 can hold.
STILL = "config.runner.total_steps=1,,config.optimizer.lr=1e-30,,config.optimizer.weight_decay=0.0"


@pytest.fixture
def first(run, tmp_path):
    """A checkpoint to start from: `first(upstream)`, trained for two steps with another seed."""
    return lambda upstream="saat_ours": run(
        tmp_path / f"first-{upstream}", "--seed", 5, o="config.runner.total_steps=2", upstream=upstream
    )


def weights(path):
    states = states_of(path)
    return {key: states[key] for key in ("Transformer", "SpecHead", "Optimizer", "Step", "Losses")}


@pytest.mark.parametrize("upstream", ["saat_ours", "saat_xbox"])
def test_a_new_run_with_the_weights(run, first, tmp_path, upstream, capsys):
    start = first(upstream)
    path = run(tmp_path / "exp", "-i", start, upstream=upstream, o=STILL)
    before, after = states_of(start), states_of(path)
    assert f"weights start from {start}, step 2" in capsys.readouterr().out
    assert same(before["Transformer"], after["Transformer"]) and same(before["SpecHead"], after["SpecHead"])
    assert after["Step"] == 1 and after["Args"]["seed"] == 1337
    state = next(iter(after["Optimizer"]["state"].values()))
    assert state["step"] == 1  # a fresh optimizer
    known = {"file": str(start), "sha256": file_sha256(start), "step": 2}
    (line,) = map(json.loads, (tmp_path / "exp" / "starts.jsonl").read_text().splitlines())
    assert after["Args"]["init_ckpt"] == line["init_ckpt"] == known
    assert known["sha256"] in pretraining(path, after)["made_from"]


def test_resume_is_bitwise(run, first, tmp_path, capsys):
    """And keeps what the run started from, which need not be there any more."""
    start = first()
    whole = run(tmp_path / "whole", "-i", start, o="config.runner.save_step=3")
    assert not same(weights(whole)["Transformer"], weights(run(tmp_path / "other"))["Transformer"])
    run(tmp_path / "parts", "-a", "-i", start, o="config.runner.save_step=3")
    (tmp_path / "parts" / "states-6.ckpt").unlink()
    started_from = states_of(whole)["Args"]["init_ckpt"]
    start.unlink()
    capsys.readouterr()
    resumed = run(tmp_path / "parts", "-a", "-i", start)
    said = capsys.readouterr().out
    assert "is not read: this run goes on" in said and f"started from {start}" in said
    assert same(weights(resumed), weights(whole)) and states_of(resumed)["Args"]["init_ckpt"] == started_from


def test_where_the_heads_started(run, first, tmp_path):
    """For the figure of R before and after."""
    start = first()
    path = run(tmp_path / "exp", "-i", start)
    R = states_of(start)["Transformer"]["layer.attention.R"].softmax(-1)
    before, after = initial_and_trained(path)
    assert torch.equal(before, R) and not torch.equal(after, R)
    assert not torch.equal(initial_and_trained(start)[0], R)  # from the patterns
    checkpoint.save(tmp_path / "untrained.ckpt", {**states_of(start), "Step": 0})
    assert torch.equal(initial_and_trained(tmp_path / "untrained.ckpt")[0], R)
    start.write_bytes(b"another")
    with pytest.raises(SaatError, match=f"the run started from {start}, which is gone or another file now"):
        initial_and_trained(path)


def test_a_run_that_started_without_says_so(run, tmp_path, capsys):
    run(tmp_path / "exp", o="config.runner.total_steps=1")
    run(tmp_path / "exp", "-a", "-i", "somewhere.ckpt", o="config.runner.total_steps=2")
    assert "-i somewhere.ckpt is not read: this run goes on, it once started from random" in capsys.readouterr().out


def test_without_a_head_and_with_other_task_settings(run, first, tmp_path, capsys):
    states = states_of(first())
    del states["SpecHead"]
    bare = tmp_path / "bare.ckpt"
    checkpoint.save(bare, {key: states[key] for key in ("Transformer", "Upstream_Config")})
    o = f"{STILL},,config.model.task.mask_consecutive=2,,config.model.task.target=linear"
    path = run(tmp_path / "exp", "-i", bare, o=o)
    assert "has no prediction head" in capsys.readouterr().out
    assert same(states_of(path)["Transformer"], states["Transformer"])
    drawn = states_of(run(tmp_path / "random", o=o))["SpecHead"]
    assert torch.equal(states_of(path)["SpecHead"]["output.weight"], drawn["output.weight"])
    with pytest.raises(SaatError, match="cannot be resumed from: it lacks .*-i starts a new run"):
        cli.pretrain(["-e", str(bare)])


@pytest.mark.parametrize(
    ("upstream", "o", "message"),
    [
        ("saat_ours", "transformer.max_length=30", "transformer.max_length: 25 in the checkpoint, 30 here"),
        ("saat_ours", "transformer.num_hidden_layers=3", "transformer.num_hidden_layers: 2 in the checkpoint, 3 here"),
        ("saat_ours", "audio.n_freq=401", "audio.n_freq: 201 in the checkpoint, 401 here"),
        ("saat_ours", "task.target=linear", "task.target: input in the checkpoint, linear here"),
        ("saat_syn_dense", "attention.bottleneck=8", "attention.bottleneck: 16 in the checkpoint, 8 here"),
    ],
)
def test_what_does_not_fit_is_named(run, first, tmp_path, upstream, o, message):
    with pytest.raises(SaatError, match=f"-i .*is of another model: {message}.*Pass the checkpoint's values"):
        run(tmp_path / "exp", "-i", first(upstream), upstream=upstream, o=f"config.model.{o}")
    assert not (tmp_path / "exp").exists()


def test_what_needs_not_fit(run, first, tmp_path):
    """The length of a variant of any length, where R started, and dropout."""
    o = "config.model.transformer.max_length=30,,config.model.transformer.hidden_dropout_prob=0.0"
    run(tmp_path / "exp", "-i", first("saat_qk"), upstream="saat_qk", o=f"{STILL},,{o}")
    run(tmp_path / "ours", "-i", first(), o=f"{STILL},,config.model.attention.init=authors")


def test_other_errors(run, first, tmp_path):
    start = first("saat_qk")
    with pytest.raises(
        SaatError, match="is a checkpoint of saat_qk, not of saat_ours: pass -u saat_qk; saat init-from"
    ):
        run(tmp_path / "exp", "-i", start)
    with pytest.raises(SaatError, match="-e goes on with a run and -i starts a new one"):
        run(tmp_path / "exp", "-e", start, "-i", start)
    with pytest.raises(SaatError, match="no checkpoint at .*nowhere.ckpt"):
        run(tmp_path / "exp", "-i", tmp_path / "nowhere.ckpt")
    damaged = states_of(start)
    damaged["Transformer"]["layer.output.weight"] = torch.zeros(3, 3)
    checkpoint.save(tmp_path / "damaged.ckpt", damaged)
    with pytest.raises(
        SaatError, match=r"damaged.ckpt: the weights do not fit the model its config.*layer.output.weight"
    ):
        run(tmp_path / "exp", "-i", tmp_path / "damaged.ckpt", upstream="saat_qk")
