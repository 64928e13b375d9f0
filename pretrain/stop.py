"""Stopping between two steps: SIGINT and SIGTERM (Slurm's preemption, torchrun's end)."""

import signal
import threading
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal ended the run between two steps; everything is saved. `signum` is the signal."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Stopper:
    """Turns SIGINT and SIGTERM into a request that the loop looks at between steps.

    A second Ctrl-C acts at once. A second SIGTERM does not: schedulers send it to every process, torchrun once more.
    """

    def __init__(self):
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, signum: int, frame: object) -> None:
        self.signum = self.signum or signum
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
