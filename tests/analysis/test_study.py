"""The study: what it plans, how it runs its steps, what it makes of what they leave."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from saat.analysis.measure import operations
from saat.analysis.study import report, tables
from saat.analysis.study.options import Corpora, Options, open_folder
from saat.analysis.study.results import collect, mean_and_deviation
from saat.analysis.study.run import Runner, only_one
from saat.analysis.study.steps import Step, plan, write_utterances
from saat.analysis.study.subjects import SUBJECTS, chosen
from saat.analysis.subjects import VARIANTS, Workload, run_of
from saat.cli import parser
from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.errors import SaatError


@pytest.fixture
def options(tmp_path):
    corpora = Corpora(["/pre"], ["/spk"], ["/ph"], "/phones.txt", None, ["/other"])
    return Options(
        corpora, "mini", tmp_path / "out", ["saat_mel", "saat_qk", "saat_ours", "saat_ours_from_qk"], seeds=2
    )


def test_a_step_needs_what_it_takes(options):
    steps = {step.name: step for step in plan(options)}
    assert list(steps)[:2] == ["pretrain-saat_qk-0", "probe-saat_qk-0"]
    assert steps["probe-saat_ours-1"].needs == ("pretrain-saat_ours-1",)
    assert steps["start-saat_ours_from_qk-1"].needs == ("pretrain-saat_qk-1",)
    assert steps["pretrain-saat_ours_from_qk-1"].needs == ("start-saat_ours_from_qk-1",)
    assert steps["probe-saat_mel-2-seeds"].needs == ("pretrain-saat_qk-0",)
    assert [name.rpartition("-")[0] for name, step in steps.items() if step.alone] == [
        "bench-inference",
        "bench-training",
    ]
    assert len(steps) == 2 * (2 + 2 + 3) + 1 + 2
    names = set(steps)
    assert all(set(step.needs) <= names for step in steps.values())
    argv = steps["pretrain-saat_ours_from_qk-1"].argv()
    assert argv[:3] == ["pretrain", "-u", "saat_ours"] and argv[argv.index("-i") + 1].endswith(
        "saat_ours_from_qk-1.ckpt"
    )


def test_more_is_asked_for_later(options):
    """More upstreams are timed with those of before; more seeds reach the controls; other curves are refused."""

    def names(**changes):
        return {step.name: step for step in plan(replace(options, **changes))}

    def timed(steps):
        argv = next(step for name, step in steps.items() if name.startswith("bench-inference")).argv()
        return argv[argv.index("--upstreams") + 1 : argv.index("--corpus")]

    first = names(upstreams=["saat_qk", "saat_q"])
    assert timed(first) == ["saat_qk", "saat_q"]
    (options.out / "bench").mkdir(parents=True)
    done = [{"upstream": name} for name in timed(first)]
    (options.out / "bench" / "inference.json").write_text(json.dumps(done))
    other = names(upstreams=["saat_qk", "saat_ours"])
    assert timed(other) == ["saat_qk", "saat_q", "saat_ours"]
    assert "probe-saat_mel-3-seeds" in names(seeds=3) and "probe-saat_mel-3-seeds" not in names(seeds=2)

    (options.out / "bench" / "inference.json").unlink()
    (options.out / "bench").rmdir()
    open_folder(options)
    open_folder(replace(options, curves=40))
    open_folder(options)
    with pytest.raises(SaatError, match="--curves 80: those in .* are of 40 steps"):
        open_folder(replace(options, curves=80))


def test_unknown_upstreams_and_starts_without_a_source():
    with pytest.raises(SaatError, match="unknown upstream 'saat_our': did you mean 'saat_ours'"):
        chosen(["saat_our"])
    with pytest.raises(SaatError, match="starts from the maps of saat_qk: add it"):
        chosen(["saat_ours_from_qk"])
    assert len(chosen(None)) == len(SUBJECTS) == 17


def test_no_test_utterance_is_pretrained_on(tmp_path, make_corpus):
    audio = make_corpus(speakers=2, utterances=6).folder
    ids = sorted(path.stem for path in audio.rglob("*.flac"))
    splits = tmp_path / "splits"
    splits.mkdir()
    for split, names in (("train", ids[4:8]), ("dev", ids[:2]), ("test", ids[2:4])):
        (splits / f"{split}_split.txt").write_text("\n".join(names))
    folders = [str(audio)]
    listed = Options(Corpora(folders, folders, folders, splits=str(splits)), "mini", tmp_path / "listed")
    assert write_utterances(listed).read_text().split() == ids[4:]
    drawn = Options(Corpora(folders, folders, folders), "mini", tmp_path / "drawn")
    test = {utterance.id for utterance in read_corpus(DataConfig(folders), 480)["test"]}
    assert test and write_utterances(drawn).read_text().split() == [name for name in ids if name not in test]
    nothing = Corpora(folders, folders, folders, splits=str(splits), test_other=folders)
    with pytest.raises(SaatError, match="every utterance"):
        write_utterances(Options(nothing, "mini", tmp_path / "nothing"))


def test_the_folder_of_another_study_is_left_alone(options, tmp_path):
    open_folder(options)
    open_folder(options)
    other = Options(Corpora(["/pre2"], ["/spk"], ["/ph"]), "mini", options.out)
    with pytest.raises(SaatError, match="holds a study with other corpora"):
        open_folder(other)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(SaatError, match="not empty"):
        open_folder(Options(options.corpora, "mini", tmp_path / "thesis"))
    with (
        only_one(options.out),
        pytest.raises(SaatError, match="another `saat study` is at work"),
        only_one(options.out),
    ):
        pass


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


@pytest.mark.parametrize("upstream", VARIANTS)
def test_derived_operations_are_those_counted(upstream):
    """SPEC's derivation against torch's counter, where the variant computes just what the derivation counts."""
    work = Workload(length=100, batch=2, hidden=96)
    counted = operations(run_of(upstream, work))
    projection = 2 * work.batch * work.length * work.config().audio.input_dim * work.hidden
    derived = 2 * 6 * work.batch * tables.multiply_adds(upstream, work.length, work.hidden)
    exact = not re.search("sparse|lsh|xbox|mdense", upstream)
    assert counted - projection == pytest.approx(derived, rel=1e-6 if exact else 0.5)


def probed(out, run, entries):
    (out / "probes").mkdir(exist_ok=True, parents=True)
    (out / "probes" / f"{run}.json").write_text(json.dumps(entries))


def entry(probe, accuracy, seed=0, split="test"):
    return {"probe": probe, "seed": seed, "split": split, "accuracy": accuracy, "chance": 0.1}


def test_results_and_table(tmp_path):
    probed(tmp_path, "saat_qk-0", [entry("speaker_utterance", 0.5), entry("phoneme_1hidden", 0.6)])
    probed(tmp_path, "saat_qk-1", [entry("speaker_utterance", 0.7), entry("phoneme_1hidden", 0.6, 0, "test-other")])
    probed(tmp_path, "saat_mel-all", [entry("speaker_utterance", 0.1, seed) for seed in (0, 1)])
    probed(tmp_path, "saat_qk-curve-20", [entry("speaker_utterance", 0.2)])
    (tmp_path / "pretrain" / "saat_qk-1").mkdir(parents=True)
    lines = [
        {"step": 5, "processor_seconds": 2.0},
        {"step": 5, "held_out_loss": 1.0},
        {"step": 9, "processor_seconds": 3},
    ]
    (tmp_path / "pretrain" / "saat_qk-1" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    rows = collect(tmp_path)
    assert [(r["upstream"], r["seed"], r["split"]) for r in rows] == [
        ("saat_mel", 0, "test"),
        ("saat_mel", 1, "test"),
        ("saat_qk", 0, "test"),
        ("saat_qk", 1, "test"),
        ("saat_qk", 1, "test-other"),
    ]
    assert rows[3]["pretrain_seconds"] == 5.0 and rows[2]["pretrain_seconds"] is None
    assert rows[3]["phoneme_1hidden"] is None and rows[4]["phoneme_1hidden"] == 0.6
    table = tables.accuracies(rows)
    assert table.rows[0][:4] == ["chance", "-", "10.0", "-"]
    qk = next(row for row in table.rows if row[0].startswith("saat_qk"))
    assert qk == ["saat_qk (Baseline (QK))", "2", "60.0 ± 14.1", "99.3", "60.0", "64.6"]
    assert len(table.columns) == len(qk)
    assert tables.accuracies(rows, "test-other").rows[1] == ["saat_qk (Baseline (QK))", "1", "60.0"]
    assert mean_and_deviation([0.3]) == (0.3, None)


def test_report_escapes_and_needs_no_other_file(tmp_path):
    table = tables.Table("T & <t>", ["name", "x"], [["<b>", "1.5 ± 0.2"], ["y", "-"]])
    picture = tmp_path / "figures" / "p.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG")
    sections = [report.Section("A", "text\n\nmore", [table], [(picture, "what")], ["saat x"])]
    markdown, page = report.write_report("R", sections, tmp_path)
    assert "| <b>  | 1.5 ± 0.2 |" in markdown.read_text() and "![what](figures/p.png)" in markdown.read_text()
    text = page.read_text()
    assert "&lt;b&gt;" in text and "<b>1.5" not in text and 'src="data:image/png;base64,iVBORw==' in text
    assert "http" not in text


def test_the_commands_of_the_docs_are_understood():
    root = Path(__file__).resolve().parents[2]
    found = 0
    for page in ("README.md", "docs/study.md"):
        text = (root / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("    saat study ") or line.startswith("    saat report "):
                parser().parse_args(shlex.split(line)[1:])
                found += 1
    assert found == 3
