"""The processes that train one model together: one, or as many as `torchrun` starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from saat.errors import SaatError

TIMEOUT = timedelta(minutes=30)  # measuring a corpus for the first time takes one process that long


@dataclass(frozen=True)
class World:
    """Who this process is among the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine: the number of its GPU
    control: Any = None  # a group for messages between CPUs, which wait for no GPU

    @property
    def is_main(self) -> bool:
        """Rank 0 alone writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes, in float64. A collective call."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, group=self.control)
        return message.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        self.sum(0.0)

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process of each machine does it before the others, which then find its work in the cache."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world as `torchrun` describes it in the environment; a world of one without it.

    Args:
        device: where this process computes; CUDA talks by NCCL, the CPU by gloo.

    Errors: SaatError where a description is there, but not whole.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SaatError(f"WORLD_SIZE is set, but not {', '.join(missing)}: start with torchrun, or unset WORLD_SIZE")
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield World(dist.get_rank(), dist.get_world_size(), local_rank(), control)
    finally:
        dist.destroy_process_group()


def say(line: str) -> None:
    """Prints a line once, whatever the number of processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def local_rank() -> int:
    """This process's number among those of its machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))
