"""Runs the steps of a study, several at once, each a process of its own; what is done is never done again."""

import fcntl
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TextIO

import torch
from tqdm import tqdm

import saat
from saat.analysis.study.steps import Step, unfinished
from saat.errors import SaatError
from saat.files import write_text
from saat.pretrain.stop import Interrupted, Stopper

POLL = 0.2  # seconds between two looks at the processes
GRACE = 120  # seconds a process gets to save what it has, after a signal


@dataclass
class Running:
    """A step's process; its lock is held as long as the process lives, even where the study does not."""

    step: Step
    process: subprocess.Popen
    lock: TextIO
    begin: float


class Runner:
    """Runs steps.

    Args:
        out: the study's folder; `done/` has a file a finished step, `logs/` what each printed.
        jobs: how many steps run at once; the CPU's cores are shared out among them.
    """

    program = (sys.executable, "-m", "saat.cli")  # what a step's arguments are for

    def __init__(self, out: Path, jobs: int):
        self.out, self.jobs = out, jobs
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        for name in ("done", "logs", "locks"):
            (out / name).mkdir(exist_ok=True)

    def is_done(self, name: str) -> bool:
        return self._mark(name).is_file()

    def run(self, steps: list[Step], progress: bool = True) -> None:
        """Everything that is not done yet.

        Errors: SaatError when steps failed, after all that does not need them is done; Interrupted after a signal,
        when the processes have saved what they have.
        """
        waiting = [step for step in steps if not self.is_done(step.name)]
        running: list[Running] = []
        failed: dict[str, Path] = {}
        shown_names = ""
        with Stopper() as stopper, _bar(len(steps), len(steps) - len(waiting), progress) as bar:

            def fail(step: Step, log: Path) -> None:
                if log not in failed.values():
                    bar.write(f"failed: {step.name}: {_last_line(log)}", file=sys.stderr)
                failed[step.name] = log
                bar.update()

            try:
                while waiting or running:
                    if stopper.signum is not None:
                        raise Interrupted("stopped; the same command goes on from here", stopper.signum)
                    for one in [one for one in running if one.process.poll() is not None]:
                        running.remove(one)
                        if self._finish(one):
                            bar.update()
                        else:
                            fail(one.step, self._log(one.step.name))
                    for step in [step for step in waiting if any(need in failed for need in step.needs)]:
                        waiting.remove(step)
                        fail(step, failed[next(need for need in step.needs if need in failed)])
                    for step in self._start_some(waiting, running):
                        fail(step, self._log(step.name))
                    names = ", ".join(one.step.name for one in running)
                    if names != shown_names:
                        shown_names = names
                        bar.set_postfix_str(names)
                    time.sleep(POLL)
            except BaseException:
                self._stop(running)
                raise
        if failed:
            logs = "; ".join(f"{log}: {_last_line(log)}" for log in dict.fromkeys(failed.values()))
            raise SaatError(
                f"{len(failed)} of {len(steps)} steps failed or need one that did ({logs}). The others are done and "
                "kept: mend the cause, and give the same command again"
            )

    def _start_some(self, waiting: list[Step], running: list[Running]) -> list[Step]:
        """Moves what may run now from one list to the other; returns the steps that could not be started."""
        failed: list[Step] = []
        ready = [step for step in waiting if all(self.is_done(need) for need in step.needs)]
        # What finishes a subject comes first; what must be alone, when nothing else is left.
        ready.sort(key=lambda step: (step.alone, not step.needs))
        left_running = self._of_a_killed_study(running)
        for step in ready:
            busy = len(running) + len(left_running)
            if busy >= self.jobs or any(one.step.alone for one in running) or (step.alone and busy):
                break
            if step.name in left_running:
                continue
            waiting.remove(step)
            try:
                running.append(self._start(step))
            except SaatError as error:  # such as a checkpoint that is gone
                with self._log(step.name).open("a", encoding="utf-8") as log:
                    log.write(f"\n{error}\n")
                failed.append(step)
        return failed

    def _of_a_killed_study(self, running: list[Running]) -> set[str]:
        """Steps that an earlier, killed study has left running: their processes hold the locks."""
        own = {one.step.name for one in running}
        return {path.name for path in (self.out / "locks").iterdir() if path.name not in own and _is_locked(path)}

    def _start(self, step: Step) -> Running:
        """Errors: SaatError where the step's command cannot be made."""
        argv = step.argv()
        lock = (self.out / "locks" / step.name).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in step.leaves:
            unfinished(file).unlink(missing_ok=True)
        with self._log(step.name).open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shown(argv)}\n")
            log.flush()
            process = subprocess.Popen(
                [*self.program, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(step),
                start_new_session=True,  # Ctrl-C is for the study, which passes it on once
                pass_fds=(lock.fileno(),),
            )
        return Running(step, process, lock, time.time())

    def _environment(self, step: Step) -> dict[str, str]:
        threads = os.cpu_count() or 1 if step.alone else self.threads
        # A checkout that is not installed is found by the processes as well.
        path = os.pathsep.join(filter(None, (str(Path(saat.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        quiet = {"TQDM_MININTERVAL": "10"}  # of progress bars in a log
        return {**quiet, **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}

    def _finish(self, one: Running) -> bool:
        """Marks the step as done, where it is."""
        one.lock.close()
        for folder in one.step.scratch:
            rmtree(folder, ignore_errors=True)
        if one.process.returncode:
            return False
        for file in one.step.leaves:
            unfinished(file).replace(file)
        names = {str(unfinished(file)): str(file) for file in one.step.leaves}
        mark = {
            "command": shown([names.get(value, value) for value in one.process.args[len(self.program) :]]),
            "seconds": round(time.time() - one.begin, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": _machine(),
            "versions": {"saat": saat.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        write_text(self._mark(one.step.name), json.dumps(mark, indent=1) + "\n")
        for other in (self.out / "done").glob(f"{one.step.replaces}.json") if one.step.replaces else ():
            if other != self._mark(one.step.name):
                other.unlink()
        return True

    def _stop(self, running: list[Running]) -> None:
        """Ends the processes as a user would; pre-training saves a checkpoint first."""
        for one in running:
            one.process.send_signal(signal.SIGTERM)
        deadline = time.time() + GRACE
        for one in running:
            try:
                one.process.wait(max(0.1, deadline - time.time()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.lock.close()

    def _mark(self, name: str) -> Path:
        return self.out / "done" / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"


def _machine() -> str:
    """The processor (Linux names it, elsewhere its kind), its cores, and the GPU where there is one."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", about.read_text() if about.is_file() else "", re.MULTILINE)
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([names[0] if names else platform.machine(), f"{os.cpu_count()} cores", *gpu])


def shown(argv: list[str]) -> str:
    """As one would type it."""
    return shlex.join(["saat", *argv])


def _is_locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _bar(total: int, done: int, progress: bool) -> Iterator[tqdm]:
    with tqdm(total=total, initial=done, desc="study", unit="step", disable=not progress, mininterval=5) as bar:
        yield bar


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Errors: SaatError where another study runs in this folder."""
    with (out / "study.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaatError(f"another `saat study` is at work in {out}") from None
        yield
