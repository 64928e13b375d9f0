"""Stopping and going on: bit for bit what would have been without; checkpoints that survive."""

import os
import signal

import pytest
import torch

from saat.errors import SaatError
from saat.pretrain import cli, experiment
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.stop import Interrupted
from saat.upstream.attention import REGISTRY
from saat.upstream.expert import UpstreamExpert

from .conftest import same

TRAINABLE = [name for name, entry in REGISTRY.items() if entry.attention is not None]


def weights(path):
    states = torch.load(path, weights_only=True)
    return {key: states[key] for key in ("Transformer", "SpecHead", "Optimizer", "Step", "Losses")}


@pytest.fixture
def stop_at(monkeypatch):
    """Sends this process a signal during a step."""

    def arrange(step, signum=signal.SIGINT):
        calls = []
        real = UpstreamPretrainExpert.on_before_zero_grad

        def hook(self):
            calls.append(None)
            if len(calls) == step:
                os.kill(os.getpid(), signum)
            real(self)

        monkeypatch.setattr(UpstreamPretrainExpert, "on_before_zero_grad", hook)

    return arrange


@pytest.mark.parametrize("upstream", TRAINABLE)
def test_resume_is_bitwise(run, tmp_path, upstream):
    """Dropout on; from three stops, within an epoch and across its end, with and without workers."""
    whole = run(tmp_path / "whole", o="config.runner.save_step=1", upstream=upstream)
    for step in (1, 3, 4):
        for workers in (0, 2):
            resumed = run(
                tmp_path / f"from{step}-{workers}",
                "-e",
                tmp_path / "whole" / f"states-{step}.ckpt",
                o=f"config.pretrain_expert.datarc.num_workers={workers}",
            )
            assert resumed.name == whole.name == "states-6.ckpt"
            assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_resume_with_workers_and_accumulation(run, tmp_path, workers, optimizer):
    o = f"config.optimizer.name={optimizer},,config.runner.gradient_accumulate_steps=2,,config.runner.save_step=3"
    whole = run(tmp_path / "whole", o=o)
    count = f"config.pretrain_expert.datarc.num_workers={workers}"
    resumed = run(tmp_path / "rest", "-e", tmp_path / "whole" / "states-3.ckpt", o=count)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_a_goes_on(run, tmp_path, stop_at, signum):
    whole = run(tmp_path / "whole")
    stop_at(3, signum)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=r"stopped after step 3 of 6.*the same command and -a"):
        run(tmp_path / "stopped", "-a")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert list(experiment.checkpoints(tmp_path / "stopped")) == [3]
    assert same(weights(run(tmp_path / "stopped", "-a")), weights(whole))


def test_exit_codes(recipe, corpus, tmp_path, stop_at, capsys):
    argv = ["-u", "saat_ours", "-c", str(recipe), "-p", str(tmp_path / "exp"), "--corpus", str(corpus), "-a"]
    stop_at(2)
    assert cli.main(argv) == 130
    assert "stopped after step 2 of 6" in capsys.readouterr().err
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "resuming from" in out and out.splitlines()[-1].endswith("states-6.ckpt")
    assert cli.main(argv) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert cli.main(argv[:-1]) == 2


def test_one_step(run, tmp_path):
    path = run(tmp_path / "exp", o="config.runner.total_steps=1")
    states = torch.load(path, weights_only=True)
    assert path.name == "states-1.ckpt" and states["Step"] == 1 and states["Scheduler"]["lr"] == 1e-3


def test_epochs_override_steps(run, tmp_path):
    """Ten utterances, four a step: two epochs are five steps."""
    assert run(tmp_path / "exp", o="config.runner.n_epochs=2").name == "states-5.ckpt"


def test_max_keep_counts_by_step(run, tmp_path):
    run(tmp_path / "exp", o="config.runner.total_steps=11,,config.runner.save_step=1,,config.runner.max_keep=2")
    assert list(experiment.checkpoints(tmp_path / "exp")) == [10, 11]


def test_checkpoint_is_plain(run, tmp_path):
    path = run(tmp_path / "exp")
    states = torch.load(path, weights_only=True)
    assert set(experiment.NEEDED) <= states.keys() and {"Scheduler", "Epoch"} <= states.keys()

    def plain(value):
        if isinstance(value, dict):
            return all(plain(key) and plain(item) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str, bool, torch.Tensor)

    assert plain(states)
    assert states["Upstream_Config"]["upstream"] == states["Args"]["upstream"] == "saat_ours"
    upstream = UpstreamExpert("saat_ours", ckpt=str(path))
    assert torch.equal(upstream.encoder.layer.output.weight, states["Transformer"]["layer.output.weight"])


def full_disk(monkeypatch, after: int):
    """The disk is full once `after` checkpoints are written."""
    real, count = torch.save, []

    def save(*args, **kwargs):
        count.append(None)
        if len(count) > after:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)


def test_full_disk(run, tmp_path, monkeypatch):
    full_disk(monkeypatch, 1)
    with pytest.raises(SaatError, match=r"cannot save .*states-4.ckpt.*No space left.*resume with -a"):
        run(tmp_path / "exp", o="config.runner.save_step=2,,config.runner.max_keep=1")
    monkeypatch.undo()
    assert list(experiment.checkpoints(tmp_path / "exp")) == [2]
    assert not list((tmp_path / "exp").glob(".states*"))
    experiment.load(tmp_path / "exp" / "states-2.ckpt")


def test_damaged_newest_is_passed_over(run, tmp_path, capsys):
    whole = run(tmp_path / "whole")
    exp = tmp_path / "exp"
    run(exp, o="config.runner.save_step=2,,config.runner.total_steps=6")
    for step in (4, 6):
        path = exp / f"states-{step}.ckpt"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (exp / ".states-6.ckpt.x.part").write_bytes(b"half")
    resumed = run(exp, "-a")
    said = capsys.readouterr()
    assert said.err.count("passed over a damaged checkpoint") == 2 and "states-6.ckpt" in said.err
    assert "resuming from" in said.out and "states-2.ckpt" in said.out
    assert same(weights(resumed), weights(whole))
    assert not list(exp.glob(".states*"))
    for path in exp.glob("states-*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(SaatError, match="every checkpoint in .* is damaged: remove them"):
        run(exp, "-a")


def test_not_finite_steps_are_skipped(run, tmp_path, monkeypatch, capsys):
    real = torch.nn.utils.clip_grad_norm_
    calls = []

    def clip(parameters, *args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            parameters[0].grad[0] = float("nan")
        return real(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    states = torch.load(run(tmp_path / "exp"), weights_only=True)
    assert states["Skipped_Steps"] == 1 and states["Step"] == 6
    assert all(bool(value.isfinite().all()) for value in states["Transformer"].values())
    assert "1 of 6 steps changed nothing" in capsys.readouterr().err


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(run, tmp_path, monkeypatch):
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters, *args, **kwargs):
        parameters[0].grad[0] = float("inf")
        return real(parameters, *args, **kwargs)

    run(tmp_path / "exp", o="config.runner.total_steps=2")
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with pytest.raises(SaatError, match=r"gradients of 3 steps in a row, up to step 5.*lower optimizer.lr.*states-2"):
        run(tmp_path / "exp", "-a", o="config.runner.max_skipped=3,,config.runner.total_steps=9")
    experiment.load(tmp_path / "exp" / "states-2.ckpt")


def test_a_changed_corpus_is_said(run, tmp_path, corpus, capsys):
    from .conftest import write_corpus

    folder = write_corpus(tmp_path / "corpus", 6)
    run(tmp_path / "exp", "--corpus", folder, o="config.runner.total_steps=2")
    sorted(folder.rglob("*.flac"))[0].unlink()
    run(tmp_path / "exp", "-a", "--corpus", folder, o="config.runner.total_steps=4")
    assert "the corpus has changed since the checkpoint (6 utterances then, 5 now)" in capsys.readouterr().err
