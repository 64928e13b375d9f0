"""How a study runs its steps: several at once, each once, whatever is killed on the way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from saat.analysis.study.run import Runner
from saat.analysis.study.steps import Step, newest, unfinished
from saat.errors import SaatError


def test_steps_run_once_and_a_failure_costs_only_what_needs_it(tmp_path):
    def step(name, *argv, **more):
        return Step(name, lambda: list(argv), **more)

    steps = [
        step("good", "--version"),
        step("bad", "list", "--nonsense"),
        step("needs-bad", "--version", needs=("bad",)),
        step("needs-good", "--version", needs=("good",), scratch=(tmp_path / "scratch",)),
    ]
    (tmp_path / "scratch").mkdir()
    runner = Runner(tmp_path, jobs=2)
    with pytest.raises(SaatError, match=r"2 of 4 steps failed.*bad\.log.*unrecognized arguments"):
        runner.run(steps, progress=False)
    assert [runner.is_done(s.name) for s in steps] == [True, False, False, True]
    assert not (tmp_path / "scratch").exists()
    mark = json.loads((tmp_path / "done" / "good.json").read_text())
    assert mark["command"] == "saat --version" and mark["seconds"] > 0
    before = (tmp_path / "logs" / "good.log").read_text()
    runner.run([steps[0], steps[3]], progress=False)
    assert (tmp_path / "logs" / "good.log").read_text() == before


def test_what_was_found_stays_until_it_is_found_anew(tmp_path):
    class Script(Runner):
        program = (sys.executable, "-c")

    file = tmp_path / "bench" / "inference.json"
    file.parent.mkdir()
    file.write_text("before")
    (tmp_path / "features").mkdir()

    def step(name, text, code):
        code = f"import sys; open(sys.argv[1], 'x').write({text!r}); sys.exit({code})"
        return Step(name, lambda: [code, str(unfinished(file))], leaves=(file,), scratch=(tmp_path / "features",))

    runner = Script(tmp_path, jobs=1)
    with pytest.raises(SaatError, match="1 of 1 steps failed"):
        runner.run([step("one", "half", 1)], progress=False)
    assert file.read_text() == "before" and not (tmp_path / "features").exists()
    runner.run([step("one", "whole", 0)], progress=False)
    assert file.read_text() == "whole" and list(file.parent.iterdir()) == [file]
    assert json.loads((tmp_path / "done" / "one.json").read_text())["command"].endswith(f" {file}")


def test_what_was_found_otherwise_is_found_again(tmp_path):
    """A timing of another length in between: the file is no longer the first one's."""

    class Script(Runner):
        program = (sys.executable, "-c")

    file, code = tmp_path / "inference.json", "import sys; open(sys.argv[1], 'x').write(sys.argv[2])"

    def step(length):
        argv = [code, str(unfinished(file)), length]
        return Step(f"bench-inference-{length}", lambda: argv, leaves=(file,), replaces="bench-inference-*")

    runner = Script(tmp_path, jobs=1)
    (tmp_path / "done" / "bench-training-500.json").touch()
    for length in ("500", "100", "500"):
        runner.run([step(length)], progress=False)
        assert file.read_text() == length
        names = {path.stem for path in (tmp_path / "done").iterdir()}
        assert names == {f"bench-inference-{length}", "bench-training-500"}


def test_a_step_whose_checkpoint_is_gone_costs_only_itself(tmp_path):
    steps = [
        Step("gone", lambda: [str(newest(tmp_path / "pretrain" / "saat_qk-0"))]),
        Step("good", lambda: ["--version"]),
    ]
    runner = Runner(tmp_path, jobs=2)
    with pytest.raises(SaatError, match=r"1 of 2 steps failed.*gone\.log: no checkpoint in .*saat_qk-0"):
        runner.run(steps, progress=False)
    assert runner.is_done("good")


def test_nothing_is_timed_beside_what_a_killed_study_left_running(tmp_path):
    runner = Runner(tmp_path, jobs=2)
    waiting = [Step(name, lambda: ["--version"], alone=name == "bench") for name in ("bench", "one", "two")]

    def started():
        running = []
        assert runner._start_some(waiting, running) == []
        for one in running:
            assert one.process.wait() == 0
        return [one.step.name for one in running]

    with (tmp_path / "locks" / "left").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [started(), started(), started()] == [["one"], ["two"], []]
    assert started() == ["bench"]


STUDY = """
import sys
from pathlib import Path
from saat.analysis.study.run import Runner
from saat.analysis.study.steps import Step
out = Path(sys.argv[1])
script = out / "slow.py"
Runner.program = (sys.executable,)
Runner(out, 1).run([Step("slow", lambda: [str(script)])], progress=False)
"""


def test_progress_bars_do_not_fill_the_logs(tmp_path):
    class Bars(Runner):
        program = (sys.executable, "-c")

    bar = "import time, tqdm\nfor _ in tqdm.tqdm(range(50)): time.sleep(0.02)"
    Bars(tmp_path, 1).run([Step("bar", lambda: [bar])], progress=False)
    assert 1 <= (tmp_path / "logs" / "bar.log").read_text().count("it/s]") <= 3


def test_what_a_killed_study_left_running_is_waited_for(tmp_path):
    """The process of a step outlives a study that got SIGKILL; the next study does not start a second one beside it."""
    lines = tmp_path / "lines"
    (tmp_path / "slow.py").write_text(
        f"import time\nfile = open({str(lines)!r}, 'a')\n"
        "print('begin', file=file, flush=True)\ntime.sleep(3)\nprint('end', file=file, flush=True)\n"
    )
    study = [sys.executable, "-c", STUDY, str(tmp_path)]
    first = subprocess.Popen(study)
    wait_for(lambda: lines.is_file() and "begin" in lines.read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert subprocess.run(study).returncode == 0
    assert lines.read_text().split() == ["begin", "end"] * 2 and (tmp_path / "done" / "slow.json").is_file()


def test_sigterm_ends_the_steps_too(tmp_path):
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    study = subprocess.Popen([sys.executable, "-c", STUDY, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    study.send_signal(signal.SIGTERM)
    assert study.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)
