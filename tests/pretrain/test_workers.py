"""Workers and signals: the training process alone decides when they end, and they never outlive it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import TINY

LOADING = """
import signal, sys, time
from torch.utils.data import _utils
from saat.pretrain.data import Crops, loader
from saat.pretrain.manifest import load_corpus
from saat.upstream.config import model_config

_utils.MP_STATUS_CHECK_INTERVAL = 600  # seconds torch waits for a worker that does not answer, then ends it itself
asked = []
signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(signum))  # as loop.Stopper does
config = model_config("saat_ours", ({model}, "test"))
batches = iter(loader(Crops(load_corpus([{corpus!r}], 480), config, 2, 2, 0), 0, 10000, 2, False))
print(*(worker.pid for worker in batches._workers), flush=True)
while not asked:
    next(batches)
numbers = [int(next(batches).numbers[0]) for _ in range(50)]
assert numbers == list(range(numbers[0], numbers[0] + 100, 2))
{end}
"""


@pytest.fixture
def loading(corpus):
    """Starts a process that loads batches until it gets SIGTERM, in a process group of its own; and its workers."""
    started = []

    def start(end: str) -> tuple[subprocess.Popen, list[int]]:
        code = LOADING.format(model=TINY["model"], corpus=str(corpus), end=end)
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True))
        return started[-1], [int(pid) for pid in started[-1].stdout.readline().split()]

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def all_end_within(seconds: float, pids: list[int]) -> bool:
    """Polls: the workers are not this process's children."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


# The iterator gone, the usual case; alive when Python exits (multiprocessing then ends the workers by SIGTERM); and
# with an exception on its way, which keeps it alive too.
@pytest.mark.parametrize(
    "end", ["", *(pytest.param(end, marks=pytest.mark.slow) for end in ("del batches", "raise KeyboardInterrupt"))]
)
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS does not say who sent a signal")
def test_workers_survive_what_the_whole_group_gets_and_end_with_their_parent(loading, end):
    process, workers = loading(end)
    assert len(workers) == 2
    for signum in (signal.SIGINT, signal.SIGTERM) if "Interrupt" not in end else (signal.SIGTERM,):
        for worker in workers:
            os.kill(worker, signum)
    time.sleep(0.3)
    assert process.poll() is None and all(map(alive, workers))
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)  # so every worker answered, however slow the machine
    assert (process.returncode == 0) == ("raise" not in end)
    assert all_end_within(1, workers)


@pytest.mark.slow  # torch's workers look every 5 s
def test_no_orphans(loading):
    process, workers = loading("")
    process.kill()
    assert all_end_within(20, workers)
