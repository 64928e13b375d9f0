"""The study: what it plans, and what it makes of what its steps leave."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from saat.analysis.measure import operations
from saat.analysis.study import report, tables
from saat.analysis.study.options import Corpora, Options, open_folder
from saat.analysis.study.results import collect, curves, mean_and_deviation
from saat.analysis.study.run import only_one
from saat.analysis.study.steps import plan, write_utterances
from saat.analysis.study.subjects import SUBJECTS, chosen
from saat.analysis.study.write import write
from saat.analysis.subjects import VARIANTS, Workload, run_of
from saat.cli import parser
from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.errors import SaatError
from saat.pretrain.recipe import parse_overrides


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
    assert "probe-saat_mel-3-seeds" in names(seeds=3) and "probe-saat_mel-3-seeds" not in names(seeds=2)

    open_folder(options)
    (options.out / "done").mkdir()
    (options.out / "done" / "pretrain-saat_q-0.json").touch()
    assert timed(names(upstreams=["saat_qk", "saat_ours"])) == ["saat_qk", "saat_q", "saat_ours"]
    assert set(names(bench_length=100)).isdisjoint(name for name in names() if name.startswith("bench-"))
    open_folder(replace(options, curves=40))
    open_folder(options)
    with pytest.raises(SaatError, match="--curves 80: those in .* are of 40 steps"):
        open_folder(replace(options, curves=80))


def test_each_seed_draws_its_own_start(options):
    """R as well as the other weights; what starts from maps has nothing to draw."""
    names = ["saat_qk", "saat_syn_random", "saat_ours_authors_init", "saat_ours_from_qk", "saat_simple_lsh"]
    steps = {step.name: step for step in plan(replace(options, upstreams=names, curves=40))}

    def drawn(name):
        argv = steps[f"pretrain-{name}"].argv()
        return parse_overrides(argv[argv.index("-o") + 1])[0].get("model", {}).get("attention", {})

    assert drawn("saat_syn_random-1") == {"seed": 1} and drawn("saat_simple_lsh-1") == {"seed": 1}
    assert drawn("saat_ours_authors_init-1") == {"init": "authors", "seed": 1}
    for name in ("saat_syn_random-0", "saat_qk-1", "saat_ours_from_qk-1"):
        assert drawn(name) == {}
    assert drawn("saat_ours_authors_init-0") == {"init": "authors"}


def test_fewer_seeds_keep_what_the_controls_have(options):
    probed(options.out, "saat_mel-all", [entry("speaker_frame", 0.1, seed) for seed in range(3)])
    step = {step.name: step for step in plan(replace(options, seeds=1))}["probe-saat_mel-3-seeds"]
    (options.out / "pretrain" / "saat_qk-0").mkdir(parents=True)
    (options.out / "pretrain" / "saat_qk-0" / "states-2.ckpt").touch()
    argv = step.argv()
    assert argv[argv.index("--seeds") + 1] == "3"


@pytest.mark.parametrize("name", ["out", "study #2", "run: big"])
def test_any_folder_will_do(options, tmp_path, name):
    """The path reaches the recipe as it is, though YAML has a meaning for such signs."""
    step = next(step for step in plan(replace(options, out=tmp_path / name)) if step.name == "pretrain-saat_qk-0")
    argv = step.argv()
    config, _ = parse_overrides(argv[argv.index("-o") + 1])
    assert config["pretrain_expert"]["datarc"]["splits"] == str(tmp_path / name / "pretrain" / "utterances.txt")


def test_the_recipe_of_a_study_is_its_own(options, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("runner: {total_steps: 9}\n")
    options = replace(options, recipe=str(recipe))
    open_folder(options)
    recipe.write_text("# what it is for\nrunner: {total_steps: 9}\n")
    open_folder(options)
    argv = plan(options)[0].argv()
    assert Path(argv[argv.index("-c") + 1]).read_text() == "runner: {total_steps: 9}\n"
    recipe.write_text("runner: {total_steps: 10}\n")
    with pytest.raises(SaatError, match="holds a study with other recipe"):
        open_folder(options)


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


def test_curves_between_two_logs(tmp_path):
    """Processor time is known where it was logged; losses and checkpoints in between get their share of it."""
    folder = tmp_path / "pretrain" / "saat_qk-curve"
    folder.mkdir(parents=True)
    lines = [
        {"step": 5, "held_out_loss": 0.9},
        {"step": 10, "loss": 0.8, "processor_seconds": 20.0},
        {"step": 15, "held_out_loss": 0.7},
        {"step": 20, "loss": 0.6, "processor_seconds": 40.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "lo')
    probed(tmp_path, "saat_qk-curve-15", [entry("speaker_frame", 0.2)])
    assert curves(tmp_path)["saat_qk"] == {
        "loss": [(10, 20.0, 0.8), (20, 60.0, 0.6)],
        "held_out": [(5, 10.0, 0.9), (15, 40.0, 0.7)],
        "speaker_frame test": [(15, 40.0, 0.2)],
    }


def test_a_report_of_what_is_left(options, tmp_path):
    """Checkpoints removed to save room, a curve that has not logged anything yet: a report all the same, with what
    was drawn from those checkpoints."""
    open_folder(options)
    folder = options.out / "pretrain" / "saat_ours-0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5, "processor_seconds": 2.0}\n')
    (folder / "starts.jsonl").write_text('{"corpus": {"utterances": 3, "hours": 0.1}}\n')
    (options.out / "pretrain" / "saat_qk-curve").mkdir()
    with pytest.raises(SaatError, match="nothing has been probed yet"):
        write(options.out)
    probed(options.out, "saat_ours-0", [entry("speaker_frame", 0.5)])
    (options.out / "done").mkdir()
    mark = {"command": "saat pretrain -c '/a/b/c d.yaml'", "seconds": 1, "machine": "m", "versions": {"torch": "2"}}
    mark["versions"]["saat"] = "0"
    for name in ("saat_ours-0", "saat_qk-0"):  # the latter's folder is gone
        (options.out / "done" / f"pretrain-{name}.json").write_text(json.dumps(mark))
    markdown, _ = write(options.out)
    text = markdown.read_text()
    assert "3 utterances, 0.10 h, of /pre (" in text and "on /other too." in text
    assert ", 7 steps" in text and "50.0" in text and "Learning curves" not in text
    assert "Figure 2" not in text and "Figure 4" not in text and "before and after" not in text

    kept = {"correlation": [0.987], "kl": [0.1], "kl_reverse": [0.2], "moved": [0.034]}
    (options.out / "figures" / "figure2.json").write_text(json.dumps(kept))
    for name in ("figure2.png", "figure4.png"):
        (options.out / "figures" / name).write_bytes(b"\x89PNG")
    text = write(options.out)[0].read_text()
    assert "Figure 2" in text and "Figure 4" in text and "Figure 6" not in text and "0.9870" in text


def test_bars_in_a_cell():
    text = report.table_markdown(tables.Table("T", ["KL(a || b)", "x"], [["1", "2"]]))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {3}


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
    assert '<td class="words">y</td><td>-</td>' in text and '<th class="words">name</th><th>x</th>' in text


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
