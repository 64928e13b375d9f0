"""What a study makes of what its steps leave: results, tables, the report."""

import json
import re

import pytest

from saat.analysis.measure import operations
from saat.analysis.study import report, tables
from saat.analysis.study.options import open_folder
from saat.analysis.study.results import collect, curves, mean_and_deviation
from saat.analysis.study.write import write
from saat.analysis.subjects import VARIANTS, Workload, run_of
from saat.errors import SaatError
from saat.markdown import markdown_table


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
    text = markdown_table([["KL(a || b)", "x"], ["1", "2"]])
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
