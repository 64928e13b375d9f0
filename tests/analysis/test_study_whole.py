"""The whole of a study, killed twice on the way."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from saat.cli import main

RECIPE = {
    "runner": {"total_steps": 30, "log_step": 5, "eval_step": 15, "save_step": 5},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "pretrain_expert": {"datarc": {"train_batch_size": 4, "num_workers": 0, "held_out": 2}},
    "model": {
        "audio": {"n_mels": 10},
        "transformer": {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32, "max_length": 12},
        "task": {"sequence_length": 36},
    },
}
UPSTREAMS = ["saat_mel", "saat_qk", "saat_ours", "saat_ours_untrained", "saat_ours_from_qk"]


@pytest.fixture
def study(make_corpus, tmp_path):
    """Its command line."""
    corpus = make_corpus(speakers=3, utterances=8)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    flags = ["study", "--corpus", corpus.folder, "--phones", corpus.phones, "--recipe", recipe, "-u", *UPSTREAMS]
    flags += ["--out", tmp_path / "out", "--bench-length", 20, "--bench-hidden", 24, "--bench-rounds", 2]
    return [*map(str, flags), "--probe-steps", "20", "--curves", "4", "--jobs", "2", "--device", "cpu"]


@pytest.mark.slow
def test_killed_twice_it_completes_and_then_has_nothing_to_do(study, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("pretrain-saat_qk-0", "probe-saat_ours-0"):
        process = subprocess.Popen([sys.executable, "-m", "saat.cli", *study], stderr=subprocess.DEVNULL)
        while not (out / "logs" / f"{name}.log").is_file():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL if name.startswith("pretrain") else signal.SIGTERM)
        assert process.wait(200) != 0
    assert main(study) == 0
    rows = json.loads((out / "results.json").read_text())
    assert [row["upstream"] for row in rows] == UPSTREAMS[:3] + UPSTREAMS[3:]
    for row in rows:
        assert row["split"] == "test" and 0 <= row["phoneme_2hidden"] <= 1 and row["chance"]["speaker_frame"] > 0
        assert (row["pretrain_seconds"] is None) == (row["upstream"] in ("saat_mel", "saat_ours_untrained"))
    page = (out / "report.html").read_text()
    for text in ("Table 2", "Table 1", "Learning curves", "Which of two is ahead", "Figure 2", "Figure 5"):
        assert text in page
    assert "saat pretrain -u saat_qk" in page and "Heads of saat_ours_from_qk before and after" in page
    assert page.count("<img") >= 4 and not list((out / "features").glob("*"))
    before = {
        path: path.stat().st_mtime_ns for path in [*(out / "done").iterdir(), *(out / "pretrain").rglob("*.ckpt")]
    }
    capsys.readouterr()
    assert main(study) == 0
    assert "0 to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_cannot_work_is_said_before_anything_is_trained(study, tmp_path, make_corpus, capsys):
    def said(argv):
        assert main(argv) == 2
        return capsys.readouterr().err

    def instead(flag, value):
        at = study.index(flag)
        return [*study[: at + 1], str(value), *study[at + 2 :]]

    assert "did you mean 'saat_qk'" in said(instead("-u", "saat_kk"))
    assert "no such folder" in said(instead("--corpus", tmp_path / "nowhere"))
    assert "--test-other: no such folder" in said([*study, "--test-other", str(tmp_path / "nowhere")])
    assert "are in the train or dev split: 101" in said([*study, "--test-other", str(tmp_path / "audio" / "101")])
    assert "--curves is a number of steps" in said(instead("--curves", -5))
    assert "--phones: nothing at" in said(instead("--phones", tmp_path / "nowhere"))
    assert "did you mean 'mini'" in said(instead("--recipe", "mimi"))
    shutil.rmtree(tmp_path / "audio" / "102")
    shutil.rmtree(tmp_path / "audio" / "103")
    assert "has one speaker, 101" in said(study)
    assert not (tmp_path / "out").exists()
