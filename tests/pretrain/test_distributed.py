"""Several processes, by torchrun: the same losses as one; one rank's end is everybody's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saat.errors import SaatError
from saat.pretrain.distributed import World, join

from .conftest import write_corpus

ROOT = Path(__file__).resolve().parents[2]
FAST = "config.runner.log_step=1,,config.runner.eval_step=3,,config.pretrain_expert.datarc.held_out=2"
EXACT = f"{FAST},,config.model.transformer.hidden_dropout_prob=0.0"


def torchrun(processes: int, recipe: Path, corpus: Path, expdir: Path, o: str, upstream: str = "saat_xbox", *more):
    """Starts it; returns the process, which leads a group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    flags = ["-u", upstream, "-c", str(recipe), "-p", str(expdir), "--corpus", str(corpus), "-a", "-o", o, *more]
    return subprocess.Popen(
        [*command, str(ROOT / "run_pretrain.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )


def metrics(expdir: Path, key: str) -> list[float]:
    lines = map(json.loads, (expdir / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def test_two_processes_have_the_losses_of_one(run, recipe, corpus, tmp_path):
    """Hashing included, whose vectors come from the samples, and -i; then one process goes on alone."""
    start = run(tmp_path / "start", "--seed", 5, upstream="saat_xbox", o="config.runner.total_steps=1")
    o = f"{EXACT},,config.runner.gradient_accumulate_steps=2"
    process = torchrun(2, recipe, corpus, tmp_path / "two", o, "saat_xbox", "-i", str(start))
    run(tmp_path / "one", "-i", start, upstream="saat_xbox", o=o)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    for key in ("loss", "gradient_norm", "held_out_loss", "lr"):
        assert metrics(tmp_path / "two", key) == pytest.approx(metrics(tmp_path / "one", key), rel=1e-4), key
    assert len(metrics(tmp_path / "one", "loss")) == 6 and len(metrics(tmp_path / "one", "held_out_loss")) == 2
    states = torch.load(tmp_path / "two" / "states-6.ckpt", weights_only=True)
    assert states["World"] == 2 and said.count("2 processes, each on cpu") == 1
    run(tmp_path / "two", "-a", upstream="saat_xbox", o=f"{EXACT},,config.runner.total_steps=7")
    assert (tmp_path / "two" / "states-7.ckpt").is_file()


def test_a_rank_without_audio_takes_part_and_a_signal_saves(recipe, tmp_path):
    """Files vanish while it runs: some ranks have empty batches. SIGTERM reaches every process twice."""
    corpus, exp = write_corpus(tmp_path / "corpus", 10), tmp_path / "exp"
    o = f"{FAST},,config.runner.total_steps=100000"
    process = torchrun(2, recipe, corpus, exp, o, "saat_ours")
    deadline = time.monotonic() + 90
    while not (exp / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    for path in sorted(corpus.rglob("*.flac"))[:3]:
        path.unlink()
    seen = len(metrics(exp, "loss"))
    while len(metrics(exp, "loss")) < seen + 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert "left out:" in said and "SIGTERM: stopped after step" in said, said
    steps = [int(path.stem.split("-")[1]) for path in exp.glob("states-*.ckpt")]
    assert len(steps) == 1 and steps[0] >= seen + 20
    assert process.returncode != 0 and not list(exp.glob(".states*"))


def test_one_ranks_crash_ends_all(recipe, tmp_path):
    """With its error. Rank 1 reads another sample than rank 0, and with `strict` an unreadable one ends the run."""
    corpus = write_corpus(tmp_path / "corpus", 4)
    process = torchrun(
        2,
        recipe,
        corpus,
        tmp_path / "exp",
        f"{FAST},,config.runner.total_steps=100000,,config.pretrain_expert.datarc.strict=true,,"
        "config.pretrain_expert.datarc.train_batch_size=2,,config.pretrain_expert.datarc.held_out=0",
        "saat_ours",
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "exp" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    broken = sorted(corpus.rglob("*.flac"))[1]
    broken.write_bytes(b"no audio")
    said = process.communicate(timeout=60)[0]
    assert process.returncode not in (0, None)
    assert "run_pretrain.py, rank" in said and "cannot be read as audio" in said and str(broken) in said


def test_half_a_description_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SaatError, match="WORLD_SIZE is set, but not RANK.*start with torchrun"), join("cpu"):
        pass


def test_a_world_of_one():
    with join("cpu") as world:
        assert world == World() and world.is_main and world.sum(1, 2.5) == [1, 2.5]
        with world.first():
            world.wait()


def test_more_processes_than_crops(corpus):
    from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
    from saat.upstream.config import model_config

    with pytest.raises(SaatError, match="train_batch_size is 2 for 3 processes"):
        UpstreamPretrainExpert(
            {"corpus": [str(corpus)], "train_batch_size": 2}, model_config("saat_ours"), "cpu", share=(0, 3)
        )
