"""`saat superb`: the search, the table and going on, with a stand-in for S3PRL's script; and S3PRL's own tasks."""

import json
import os
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from saat.cli import main
from saat.errors import SaatError
from saat.superb import runs
from saat.superb.runs import Settings
from saat.superb.search import run_superb
from saat.superb.tasks import TASKS

SCRIPT = """
# Stands for S3PRL's: the best learning rate is 1e-3, and emotion's folds differ.
import argparse, pathlib, sys, torch, yaml
p = argparse.ArgumentParser()
for flag in "m", "u", "k", "d", "c", "p", "e", "t":
    p.add_argument("-" + flag)
p.add_argument("-a", action="store_true")
p.add_argument("--device")
o = p.parse_args()
with open("../calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if o.m == "train":
    assert pathlib.Path("downstream").is_dir()  # S3PRL's configs have paths relative to its folder
    config = yaml.safe_load(open(o.c))
    lr, expert = config["optimizer"]["lr"], config["downstream_expert"]
    if lr == 1e-1:
        sys.exit("RuntimeError: it exploded")
    fold = int(expert.get("datarc", {}).get("test_fold", "fold0")[-1])
    good = {1e-2: 0.2, 1e-3: 0.8}.get(lr, 0.1) + 0.01 * fold
    score = 1 - good if o.d == "ctc" else good
    name = "dev-best.ckpt"
    if o.d == "asr":  # never better than untrained
        score, name = 100.0, f"states-{config['runner']['total_steps']}.ckpt"
    torch.save({"Downstream": {"best_score": torch.tensor([score])}, "Args": o}, o.p + "/" + name)
else:
    score = float(torch.load(o.e, weights_only=False)["Downstream"]["best_score"])
    print("test loss: 3.5")
    metric = next((name for task, name in (("pr", "per"), ("asr", "wer")) if f"/{task}/" in o.e), "acc")
    print(f"{o.t} {metric}: {score - 0.01}")
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    top = tmp_path / "s3prl"
    for task in TASKS.values():
        folder = top / "s3prl" / "downstream" / task.folder
        folder.mkdir(parents=True)
        config = {"runner": {"total_steps": 200000, "log_step": 100, "eval_step": 2000, "save_step": 500},
                  "optimizer": {"lr": 1e-4}, "downstream_expert": {"datarc": {"kept": 1}}}  # fmt: skip
        (folder / task.config).write_text(yaml.safe_dump(config))
    (top / "s3prl" / "pretrain").mkdir()
    (top / "s3prl" / "pretrain" / "runner.py").write_text("")
    (top / "s3prl" / "run_pretrain.py").write_text("")
    (top / "s3prl" / "run_downstream.py").write_text(textwrap.dedent(SCRIPT))
    return top


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the stand-in without starting an interpreter for each of its runs."""
    import contextlib
    import io
    import runpy
    import sys
    from types import SimpleNamespace

    def run(command, cwd, stdout, stderr, env):
        script, arguments = command[4], command[5:]
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        printed, code = io.StringIO(), 0
        with (
            contextlib.chdir(cwd) if hasattr(contextlib, "chdir") else _chdir(cwd),
            contextlib.redirect_stdout(printed),
        ):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as stop:
                printed.write(f"{stop.code}\n")
                code = 1
        stdout.write(printed.getvalue())
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(runs.subprocess, "run", run)


class _chdir:  # contextlib.chdir is of Python 3.11
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.before = os.getcwd()
        os.chdir(self.path)

    def __exit__(self, *error):
        os.chdir(self.before)


def settings(checkout: Path, out: Path, **more) -> Settings:
    return Settings(checkout / "s3prl", out, "saat_mel", None, ("1e-1", "1e-2", "1e-3"), device="cpu", **more)


def test_search_folds_and_table(checkout, tmp_path, in_this_process):
    root = {"root": str(tmp_path)}
    data = {"pr": root, "ks": root, "asr": root | {"lengths": str(tmp_path)}}
    data["er"] = root | {"config": {"downstream_expert.datarc.kept": 2}}
    out = tmp_path / "out"
    rows = run_superb(settings(checkout, out, steps=1000), ["pr", "er", "asr", "ks", "sid"], data)
    by_task = {row["task"]: row for row in rows}
    assert by_task["pr"]["lr"] == "1e-3" and by_task["pr"]["test"] == pytest.approx(0.19)
    assert "it exploded (see" in by_task["pr"]["problems"][0]
    assert by_task["er"]["dev"] == pytest.approx(0.83) and by_task["er"]["test"] == pytest.approx(0.82)
    assert by_task["asr"]["test"] == pytest.approx(99.99) and by_task["asr"]["dev"] == 100.0
    assert "no look at dev was better" in by_task["asr"]["problems"][-1]
    assert by_task["ks"]["problem"] == "data missing (test_root): needs Speech Commands v0.01, and its test set"
    assert by_task["sid"]["problem"] == "data missing (root): needs VoxCeleb1 (dev/wav, test/wav)"
    config = yaml.safe_load((out / "er" / "lr-1e-3" / "fold2" / "config.yaml").read_text())
    assert config["downstream_expert"]["datarc"] == {"kept": 2, "root": str(tmp_path), "test_fold": "fold2"}
    assert config["runner"] == {"total_steps": 1000, "log_step": 100, "eval_step": 1000, "save_step": 500}
    table = (out / "superb.md").read_text()
    assert "| phoneme recognition (pr) | per ↓ | 19.00 | 20.00 | 1e-3 |" in table and "1000 steps each" in table
    assert "asr: no look at dev was better than an untrained model" in table
    assert json.loads((out / "superb.json").read_text()) == rows
    for call in (checkout / "calls").read_text().splitlines():
        assert " -f" not in call  # frozen; and no -s or -l: S3PRL's weighted sum of the hidden states


def test_going_on(checkout, tmp_path, in_this_process):
    data = {"pr": {"root": str(tmp_path)}}
    chosen = settings(checkout, tmp_path / "out")
    rows = run_superb(chosen, ["pr"], data)
    calls = (checkout / "calls").read_text()
    (tmp_path / "out" / "pr" / "lr-1e-3" / "test.json").unlink()
    assert run_superb(chosen, ["pr"], data) == rows
    again = (checkout / "calls").read_text()[len(calls) :].splitlines()
    assert [call.split()[3] for call in again] == ["train", "evaluate"]  # what failed, and what was lost
    with pytest.raises(SaatError, match="holds results of other settings"):
        run_superb(settings(checkout, tmp_path / "out", steps=5), ["pr"], data)


def test_command(checkout, tmp_path, capsys, ckpt_in_store, in_this_process):
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"pr": {"root": str(tmp_path)}}))
    arguments = ["superb", "--s3prl", str(checkout), "--data", str(data), "--out", str(tmp_path / "out"), "--tasks"]
    assert main([*arguments, "pr,ks", "-u", "saat_ours", "--lrs", "1e-3", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "| phoneme recognition (pr) | per ↓ | 19.00 | 20.00 | 1e-3 |" in table and "data missing" in table
    assert f"-u saat_ours_local -k {ckpt_in_store}" in (checkout / "calls").read_text()  # one and the same in all runs
    for wrong, message in ((["px", "-u", "saat_mel"], "did you mean 'pr'"), (["pr", "-u", "saat_qk"], "no checkpoint"),
                           (["pr", "-u", "saat_mel", "--lrs", "1e-3;"], "is not a learning rate")):  # fmt: skip
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
    data.write_text(yaml.safe_dump({"pr": {"rot": "x"}}))
    assert main([*arguments, "pr", "-u", "saat_mel"]) == 2
    assert "data of pr: unknown 'rot': did you mean 'root'" in capsys.readouterr().err


def test_the_page_works_as_written(checkout, tmp_path, monkeypatch, capsys, ckpt_in_store):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "superb.md").read_text(encoding="utf-8")
    Path("data.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (command,) = [line.strip() for line in page.splitlines() if line.startswith("    saat ")]
    assert main(shlex.split(command.replace("/path/to/s3prl", str(checkout)))[1:]) == 0
    assert capsys.readouterr().out.count("data missing") == len(TASKS)
    assert Path("result/superb/superb.md").is_file()


@pytest.fixture
def ckpt_in_store(tmp_path, monkeypatch, small):
    from saat.sharing import actions
    from saat.upstream import checkpoint
    from saat.upstream.config import model_config
    from saat.upstream.encoder import AudioAlbert

    monkeypatch.setenv("SAAT_CHECKPOINTS", str(tmp_path / "store"))
    config = model_config("saat_ours", (small, "test"))
    states = {"Upstream_Config": config.to_dict(), "Transformer": AudioAlbert(config).state_dict()}
    checkpoint.save(tmp_path / "states-1.ckpt", states)
    return actions.publish(str(tmp_path / "states-1.ckpt"), tag="mini")


def made_up_corpora(root: Path) -> dict[str, dict]:
    """Noise in the layout of Speech Commands, VoxCeleb1, IEMOCAP and Fluent Speech Commands."""
    rng = np.random.default_rng(0)

    def wav(path: Path, seconds: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)

    words = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
    for word in (*words, "bed"):
        for speaker in range(12):
            wav(root / "ks" / word / f"{speaker:08x}_nohash_0.wav")
    for word in (*words, "_unknown_", "_silence_"):
        wav(root / "ks_test" / word / "a.wav")
    wav(root / "ks" / "_background_noise_" / "noise.wav", 3)

    lines = []
    for speaker in range(10001, 10004):
        for i, split in enumerate((1, 1, 2, 3)):
            wav(root / "sid" / "dev" / "wav" / f"id{speaker}" / "video" / f"{i:05d}.wav")
            lines.append(f"{split} id{speaker}/video/{i:05d}.wav")
    (root / "veri_test_class.txt").write_text("\n".join(lines) + "\n")

    for session in range(1, 6):
        entries = [{"path": f"Session{session}/{label}{i}.wav", "label": label, "speaker": f"Ses0{session}F"}
                   for label in ("neu", "hap", "ang", "sad") for i in range(3)]  # fmt: skip
        for entry in entries:
            wav(root / "er" / entry["path"])
        for split in ("train", "test"):
            meta = root / "meta_data" / f"Session{session}" / f"{split}_meta_data.json"
            meta.parent.mkdir(parents=True, exist_ok=True)
            labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
            meta.write_text(json.dumps({"labels": labels, "meta_data": entries}))

    for split in ("train", "valid", "test"):
        rows = ["path,action,object,location"]
        for i in range(6):
            wav(root / "ic" / "wavs" / f"{split}{i}.wav")
            rows.append(f"wavs/{split}{i}.wav,{('on', 'off')[i % 2]},lights,{('kitchen', 'none')[i % 2]}")
        (root / "ic" / "data").mkdir(exist_ok=True)
        (root / "ic" / "data" / f"{split}_data.csv").write_text("\n".join(rows) + "\n")

    datarc = "downstream_expert.datarc"
    workers = {f"{datarc}.num_workers": 0}
    return {
        "ks": {"root": str(root / "ks"), "test_root": str(root / "ks_test"), "config": workers},
        "sid": {"root": str(root / "sid"), "config": workers
                | {f"{datarc}.meta_data": str(root / "veri_test_class.txt"), "runner.gradient_accumulate_steps": 1}},
        "er": {"root": str(root / "er"), "config": workers
               | {f"{datarc}.meta_data": str(root / "meta_data"), "runner.gradient_accumulate_steps": 1}},
        "ic": {"root": str(root / "ic"), "config": workers | {f"{datarc}.train_batch_size": 2}},
    }  # fmt: skip


@pytest.mark.slow
def test_s3prls_own_tasks_on_made_up_data(tmp_path):
    """S3PRL_CHECKOUT=/path/to/s3prl pytest -m slow tests/test_superb.py; needs pip install s3prl-saat[superb]."""
    if "S3PRL_CHECKOUT" not in os.environ:
        pytest.skip("S3PRL_CHECKOUT is not set")
    s3prl = Path(os.environ["S3PRL_CHECKOUT"]) / "s3prl"
    lists = s3prl / "downstream" / "voxceleb1" / ".cache"  # S3PRL keeps its lists of VoxCeleb's files here
    if lists.exists():
        pytest.skip(f"{lists} is there: sid would take the files of that corpus")
    chosen = Settings(s3prl, tmp_path / "out", "saat_mel", None, ("1e-3",), steps=3, device="cpu")
    try:
        rows = run_superb(chosen, ["ks", "sid", "er", "ic"], made_up_corpora(tmp_path))
    finally:
        for path in lists.glob("*.pkl"):
            path.unlink()
        if lists.exists():
            lists.rmdir()
    for row in rows:
        # Noise may not be told apart at all: then S3PRL keeps no best checkpoint.
        assert "test" in row, row
    assert any("test" in row for row in rows)
