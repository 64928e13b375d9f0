"""Measuring: seconds in turn, operations, peak memory, and the rate of matrix products as the limit."""

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

Run = Callable[[], object]


def synchronise(device: str) -> None:
    """CUDA returns before its work is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Run, device: str) -> float:
    """Of one call."""
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def in_turn(runs: dict[str, Run], rounds: int, device: str, progress: bool = True) -> dict[str, list[float]]:
    """Seconds of each run in each round, after a warm-up round.

    One after the other, round after round, so that a busy moment of the machine meets them all.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(rounds + 1), unit="round", disable=not progress):
        for name, run in runs.items():
            spent = seconds(run, device)
            if number:
                found[name].append(spent)
    return found


def ratios(times: list[float], reference: list[float]) -> list[float]:
    """Formed round by round: what slows a round slows both."""
    return [a / b for a, b in zip(times, reference, strict=True)]


def middle(values: list[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (high - low) / 2


def operations(run: Run) -> int:
    """Floating-point operations of the matrix products in one call, 2 a multiply-add, counted by torch."""
    # The counter does not know fused kernels; the plain ones have the same operations.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def matrix_product(tokens: int, hidden: int, inner: int, dtype: torch.dtype, device: str) -> tuple[Run, int]:
    """A product of the shape of the feed-forward layer, the largest there is; and its operations."""
    x = torch.randn(tokens, hidden, dtype=dtype, device=device)
    weight = torch.randn(inner, hidden, dtype=dtype, device=device)
    out = torch.empty(tokens, inner, dtype=dtype, device=device)

    def run() -> None:
        for _ in range(4):
            torch.mm(x, weight.T, out=out)

    return run, 4 * 2 * tokens * hidden * inner


def peak_bytes(run: Run, device: str) -> int | None:
    """The most memory that one call takes on top of what was in use before it; None where that cannot be seen.

    On the CPU it is the process's high-water mark, which Linux lets a process lower to its present size; exact to some
    megabytes.
    """
    if torch.device(device).type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # What the allocator keeps for later would hide what is asked for now.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
