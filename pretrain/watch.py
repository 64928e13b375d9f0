"""What a person watches: the progress bar, TensorBoard, and `metrics.jsonl`."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter  # tensorboardX hangs when the disk is full
from tqdm import tqdm

from saat.upstream.config import SAMPLE_RATE


class Rate:
    """Speed since the last reset: tokens and audio a second, waiting for data; and processor time of this process."""

    def __init__(self, spent: float = 0.0):
        """`spent`: processor seconds before this process, which a run that goes on has to count as well."""
        self.reset()
        self.begin_processor -= spent

    def reset(self) -> None:
        self.begin, self.begin_processor = time.perf_counter(), time.process_time()
        self.tokens, self.samples, self.waited = 0, 0, 0.0

    def add(self, tokens: float, samples: float, waited: float) -> None:
        """A step's tokens, samples of audio, and seconds of waiting."""
        self.tokens += tokens
        self.samples += samples
        self.waited += waited

    def values(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "times_real_time": self.samples / SAMPLE_RATE / seconds,
            "waiting_for_data": self.waited / seconds,
            "processor_seconds": self.processor_seconds,
        }

    @property
    def processor_seconds(self) -> float:
        return time.process_time() - self.begin_processor


class Watch:
    """Open during a run; in processes other than the main one it shows and writes nothing.

    Args:
        expdir: where the logs go.
        name: the upstream.
        step, total_steps: steps done, and to do in all.
        progress: draw the bar.
        is_main: whether this is the main process.
        spent: processor seconds between the last log and the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        expdir: Path,
        name: str,
        step: int,
        total_steps: int,
        progress: bool,
        is_main: bool,
        spent: float = 0.0,
    ):
        self.file = expdir / "metrics.jsonl"
        self.name = name
        self.is_main = is_main
        self.complained = False
        self.rate, self.whole = Rate(spent), Rate()  # since the last log, and of the whole run
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file needs fewer lines than a terminal
            disable=not (progress and is_main),
        )
        self.logger = SummaryWriter(str(expdir), purge_step=step + 1) if is_main else None
        if is_main:
            forget_after(self.file, step)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        self._to_tensorboard(lambda logger: logger.close())

    def step(self, loss: float, lr: float, tokens: float, samples: float, waited: float) -> None:
        """After every step: its loss and learning rate; its tokens and samples of audio; seconds waited for data."""
        for rate in (self.rate, self.whole):
            rate.add(tokens, samples, waited)
        rate = self.rate.values()
        self.bar.set_postfix(
            {
                "loss": f"{loss:.4f}",
                "lr": f"{lr:.2e}",
                "tokens/s": f"{rate['tokens_per_second']:.0f}",
                "x real time": f"{rate['times_real_time']:.0f}",
                "waiting": f"{rate['waiting_for_data']:.1%}",
            },
            refresh=False,
        )
        self.bar.update()

    def log(self, step: int, values: dict[str, float], images: dict[str, Any], prefix: str = "") -> None:
        """Numbers to TensorBoard and to a line of `metrics.jsonl`; images (3, height, width) to TensorBoard.

        Args:
            prefix: of the names in TensorBoard.
        """
        for key, value in values.items():
            tag = f"{self.name}/{prefix}{key.replace('_', '-')}"
            self._to_tensorboard(lambda logger, tag=tag, value=value: logger.add_scalar(tag, value, step))
        for key, image in images.items():
            tag = f"{self.name}/{prefix}{key}"
            self._to_tensorboard(lambda logger, tag=tag, image=image: logger.add_image(tag, image, step))
        if not values or not self.is_main:
            return
        # JSON knows no NaN.
        line = {key: value if math.isfinite(value) else None for key, value in values.items()}
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3), **line}) + "\n")
        except OSError as error:
            if not self.complained:
                self.bar.write(f"{self.file} will lack lines: {error}", file=sys.stderr)
            self.complained = True

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Around what is not training: its time does not count."""
        seconds, processor = time.perf_counter(), time.process_time()
        yield
        for rate in (self.rate, self.whole):
            rate.begin += time.perf_counter() - seconds
            rate.begin_processor += time.process_time() - processor

    def summary(self, processes: int) -> str:
        """How fast it was."""
        rate = self.whole.values()
        each = f" ({rate['tokens_per_second'] / processes:.0f} each of {processes} processes)" if processes > 1 else ""
        return (
            f"{rate['tokens_per_second']:.0f} tokens a second{each}, {rate['times_real_time']:.0f} times real time, "
            f"{rate['waiting_for_data']:.1%} of the time spent waiting for data"
        )

    def _to_tensorboard(self, write: Callable[[SummaryWriter], None]) -> None:
        """A full disk does not end the run here, but where something would be lost: at a checkpoint."""
        if self.logger is None:
            return
        try:
            write(self.logger)
        except OSError as error:
            self.logger = None
            self.bar.write(f"no more TensorBoard logs in {self.file.parent}: {error}", file=sys.stderr)


def forget_after(file: Path, step: int) -> None:
    """Drops the lines of later steps, which a resumed run writes anew, and a half-written last line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _step(line) <= step]
    if kept != lines:
        part = file.with_suffix(".part")
        part.write_text("".join(kept), encoding="utf-8")
        os.replace(part, file)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
