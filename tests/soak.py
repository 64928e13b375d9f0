"""Kills a pre-training run again and again with SIGKILL, and compares its end with that of an undisturbed run.

Usage: python tests/soak.py FOLDER [--kills 50] [--steps 3000] [--seed 0] [--corpus FOLDER]

FOLDER must be new. Both runs are of a tiny model on the given audio, or on synthetic tones. Exit code 0: the killed run
completed; its weights, optimizer and metrics are those of the undisturbed one bit for bit; every checkpoint on disk can
be loaded; nothing is left over; the corpus is as it was.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SAVE_STEP = 20


def command(expdir: Path, corpus: Path, steps: int) -> list[str]:
    override = ",,".join(
        [
            f"config.runner.total_steps={steps}",
            f"config.runner.save_step={SAVE_STEP}",
            "config.runner.log_step=10",
            "config.runner.eval_step=50",
            "config.runner.max_keep=3",
            "config.pretrain_expert.datarc.train_batch_size=4",
            "config.pretrain_expert.datarc.held_out=2",
            "config.model.audio.n_mels=10",
            "config.model.transformer={hidden_size: 24, num_hidden_layers: 2, intermediate_size: 32, max_length: 25}",
            "config.model.task.sequence_length=60",
        ]
    )
    flags = ["-u", "saat_xbox", "-c", "mini", "-p", str(expdir), "--corpus", str(corpus), "-a", "-o", override]
    return [sys.executable, str(ROOT / "run_pretrain.py"), *flags]


def start(expdir: Path, corpus: Path, steps: int) -> subprocess.Popen:
    """In a group of its own, so that its workers can be killed with it."""
    log = expdir.with_suffix(".log").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(expdir, corpus, steps), stdout=log, stderr=log, env=environment, start_new_session=True
    )


def steps_on_disk(expdir: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in expdir.glob("states-*.ckpt"))


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def killed_run(expdir: Path, corpus: Path, steps: int, kills: int, longest: float, rng: random.Random) -> list[int]:
    """Returns the newest checkpoint's step after each kill. The delays reach from before the first import to some time
    of training; every other time the workers die with the process."""
    reached = []
    for i in range(kills):
        process = start(expdir, corpus, steps)
        try:
            process.wait(timeout=rng.uniform(0, longest))
            raise SystemExit(f"the run ended by itself (code {process.returncode}) after {i} kills: pass more --steps")
        except subprocess.TimeoutExpired:
            pass
        if i % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        found = steps_on_disk(expdir)
        assert not reached or max(found, default=0) >= reached[-1], "a checkpoint got lost"
        reached.append(max(found, default=0))
        print(f"kill {i + 1}: newest checkpoint {reached[-1]}", flush=True)
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    corpus = options.corpus
    if corpus is None:
        from tests.pretrain.conftest import write_corpus

        corpus = write_corpus(options.folder / "corpus", 20)
    before = digest(corpus)
    whole, killed = options.folder / "whole", options.folder / "killed"
    begin = time.monotonic()
    process, ready = start(whole, corpus, options.steps), None
    while process.poll() is None:
        time.sleep(0.1)
        if ready is None and steps_on_disk(whole):
            ready = time.monotonic() - begin
    if process.returncode:
        raise SystemExit(f"the undisturbed run failed: see {whole.with_suffix('.log')}")
    spent = time.monotonic() - begin
    print(f"undisturbed: {options.steps} steps in {spent:.0f} s, the first checkpoint after {ready:.0f} s", flush=True)
    killed_run(killed, corpus, options.steps, options.kills, 2 * ready, random.Random(options.seed))
    assert start(killed, corpus, options.steps).wait() == 0, f"the killed run does not complete: see {killed}.log"

    from tests.pretrain.conftest import same

    a, b = (torch.load(folder / f"states-{options.steps}.ckpt", weights_only=True) for folder in (whole, killed))
    for key in ("Transformer", "SpecHead", "Optimizer", "Losses", "Step"):
        assert same(a[key], b[key]), f"{key} differs from that of the undisturbed run"
    keys = ("step", "loss", "held_out_loss", "gradient_norm")
    logs = [
        [tuple(json.loads(line).get(key) for key in keys) for line in (folder / "metrics.jsonl").open()]
        for folder in (whole, killed)
    ]
    assert logs[0] == logs[1], "metrics.jsonl differs"
    for step in steps_on_disk(killed):
        torch.load(killed / f"states-{step}.ckpt", weights_only=True)
    assert steps_on_disk(killed) == steps_on_disk(whole)
    left = sorted(path.name for path in killed.iterdir() if path.suffix == ".part")
    assert not left, f"left over: {left}"
    assert digest(corpus) == before, "the corpus was changed"
    starts = (killed / "starts.jsonl").read_text().splitlines()
    print(
        f"{options.kills} kills, {len(starts)} starts that reached training: the same weights, optimizer and metrics "
        f"bit for bit; {len(steps_on_disk(killed))} checkpoints, all whole"
    )


if __name__ == "__main__":
    main()
