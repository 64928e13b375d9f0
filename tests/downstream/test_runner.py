"""Through S3PRL's own runner: train, evaluate, resume, fine-tune, weighted sum; and what we fill in and refuse."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from saat.run_downstream import fill_in, main, packaged_config
from saat.upstream import checkpoint
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DATARC = "config.downstream_expert.datarc"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `run_downstream.py` in this process, in an empty folder. `more` goes to -o."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run_downstream.py"])
    # S3PRL sets this for the process.
    monkeypatch.setattr("torch.multiprocessing.set_sharing_strategy", lambda strategy: None)

    def run(command: str, *options: str, code: int = 0) -> None:
        assert main([*command.split(), *(("-o", ",,".join(options)) if options else ())]) == code

    return run


def options(corpus, steps, *more, save=None):
    # With workers the data order would be the same, but each epoch would start some processes.
    runner = {
        "total_steps": steps,
        "eval_step": save or steps,
        "save_step": save or steps,
        "log_step": 1,
        "max_keep": 9,
    }
    given = [f"config.runner.{key}={value}" for key, value in runner.items()]
    given += [f"{DATARC}.corpus={corpus.folder}", f"{DATARC}.num_workers=0", f"{DATARC}.train_batch_size=5"]
    return [*given, *more]


def states(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def newest(folder: Path, pattern: str) -> dict:
    return yaml.unsafe_load(max(folder.glob(pattern)).read_text())


@pytest.mark.parametrize("probe", ["speaker_utterance", "phoneme_1hidden"])
def test_train_then_evaluate(run, make_corpus, mel_config, tmp_path, capsys, probe):
    corpus = make_corpus(speakers=4, utterances=8)
    more = [f"{DATARC}.phones={corpus.phones}", "config.downstream_expert.modelrc.hidden_size=32"]
    more = more[: 2 if "phoneme" in probe else 0] + ["config.optimizer.lr=0.01"]
    run(f"-m train -u saat_mel -g {mel_config} -d {probe} -n it", *options(corpus, 60, *more, save=30))
    folder = tmp_path / "result" / "downstream" / "it"
    assert {path.name for path in folder.glob("*.ckpt")} == {"states-30.ckpt", "states-60.ckpt", "best-states-dev.ckpt"}
    assert not list(folder.glob("*.json")) and list(folder.glob("events.out.tfevents.*"))
    # What was silent on the command line: our config, the last hidden state, the CPU.
    args = newest(folder, "args_*.yaml")
    assert args["config"] == str(packaged_config(probe)) and args["upstream_feature_selection"] == "last_hidden_state"
    assert args["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    run("-m evaluate -e result/downstream/it/best-states-dev.ckpt")
    result = json.loads((folder / "accuracy-test.json").read_text())
    assert result["accuracy"] > 0.75 > result["chance"] and result["step"] in (30, 60)
    assert f"{probe}/test|step:{result['step']}|accuracy:{result['accuracy']:.4f}" in capsys.readouterr().out
    run("-m evaluate -t dev -e result/downstream/it")
    assert json.loads((folder / "accuracy-dev.json").read_text())["step"] == 60


def test_train_then_evaluate_on_a_checkpoint(run, make_corpus, small, tmp_path):
    """Reading it must not change what else may be read: S3PRL's own checkpoint, at the end."""
    config = model_config("saat_ours", (small, "test"))
    states = {"Upstream_Config": config.to_dict(), "Transformer": AudioAlbert(config).state_dict(), "Step": 1}
    checkpoint.save(tmp_path / "states-1.ckpt", states)
    corpus = make_corpus(speakers=3, utterances=4)
    run(f"-m train -u saat_ours -k {tmp_path}/states-1.ckpt -d speaker_utterance -n it", *options(corpus, 4))
    run("-m evaluate -e result/downstream/it/states-4.ckpt")
    assert json.loads((tmp_path / "result" / "downstream" / "it" / "accuracy-test.json").read_text())["step"] == 4


def test_resumed_training_is_what_it_would_have_been(run, make_corpus, tiny_config, tmp_path):
    """17 training utterances, 4 batches an epoch: stopped in the middle of one, resumed, and over its end."""
    corpus = make_corpus(speakers=4, utterances=6)
    command = f"-m train -u saat_ours_untrained -g {tiny_config} -d speaker_frame"
    run(f"{command} -p straight", *options(corpus, 7, save=1))
    run(f"{command} -p broken", *options(corpus, 3, save=1))
    half = states(tmp_path / "broken" / "states-3.ckpt")
    best = half["Downstream"]["best_dev"].item()
    run("-m train -e broken", "config.runner.total_steps=7")
    whole, resumed = (states(tmp_path / name / "states-7.ckpt") for name in ("straight", "broken"))
    assert half["Step"] == 3 and resumed["Step"] == 7 and resumed["Epoch"] == whole["Epoch"] == 1
    assert resumed["Downstream"].keys() == whole["Downstream"].keys()
    for key, value in whole["Downstream"].items():
        same = value == resumed["Downstream"][key] if key == "_extra_state" else value.equal(resumed["Downstream"][key])
        assert same, key
    assert resumed["Downstream"]["best_dev"].item() >= best > 0
    # -a finds the checkpoint by itself; all steps are done, so nothing changes.
    run(f"{command} -p broken -a", *options(corpus, 7))
    assert states(tmp_path / "broken" / "states-7.ckpt")["Step"] == 7


def test_fine_tuning_changes_the_upstream_and_keeps_it(run, make_corpus, tiny_config, tmp_path, capsys):
    corpus = make_corpus(speakers=3, utterances=4)
    command = f"-m train -u saat_ours_untrained -g {tiny_config} -d speaker_frame"
    run(f"{command} -p frozen", *options(corpus, 2))
    assert "Upstream" not in states(tmp_path / "frozen" / "states-2.ckpt")
    run(f"{command} -f -p tuned", *options(corpus, 2, save=1))
    first, second = (states(tmp_path / "tuned" / f"states-{step}.ckpt")["Upstream"] for step in (1, 2))
    changed = {key for key in first if not first[key].equal(second[key])}
    assert any(key.endswith(".R") for key in changed) and len(changed) > 5
    run("-m evaluate -e tuned")
    assert "Loading Upstream weights" in capsys.readouterr().out


def test_weighted_sum_of_all_layers(run, make_corpus, tiny_config, tmp_path):
    corpus = make_corpus(speakers=3, utterances=4)
    command = f"-m train -u saat_qk_untrained -g {tiny_config} -d speaker_utterance -s hidden_states -p sum"
    run(command, *options(corpus, 2))
    assert states(tmp_path / "sum" / "states-2.ckpt")["Featurizer"]["weights"].shape == (3,)
    assert newest(tmp_path / "sum", "args_*.yaml")["upstream_feature_selection"] == "hidden_states"


def test_from_another_folder(make_corpus, mel_config, tmp_path):
    corpus = make_corpus(speakers=3, utterances=4)
    given = options(corpus, 1, f"{DATARC}.num_workers=2")
    given[-4] = f"{DATARC}.corpus=audio"  # as any path, relative to where the command runs
    command = [sys.executable, str(CHECKOUT / "run_downstream.py"), "-m", "train", "-u", "saat_mel"]
    command += ["-g", "mel.yaml", "-d", "speaker_utterance", "-n", "here", "-o", ",,".join(given)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result" / "downstream" / "here" / "states-1.ckpt").is_file()


def test_only_gaps_are_filled(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ours = packaged_config("speaker_frame")
    filled = ["--device", "cpu", "-c", str(ours), "-s", "last_hidden_state"]
    argv = ["-m", "train", "-u", "saat_mel", "-d", "speaker_frame", "-n", "x"]
    assert fill_in(argv) == filled + argv
    # What the user says comes later, and argparse takes the last.
    spoken = [*argv, "-s", "hidden_states", "-c", str(ours), "--device", "cuda"]
    assert fill_in(spoken) == filled + spoken
    theirs = ["-m", "train", "-u", "fbank", "-d", "phone_linear"]
    assert fill_in(theirs) == ["--device", "cpu", "-s", "last_hidden_state", *theirs]
    (tmp_path / "states-3.ckpt").touch()
    resumed = ["-m", "train", "-e", str(tmp_path)]
    assert fill_in(resumed) == ["--device", "cpu", *resumed]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert fill_in(resumed) == resumed


@pytest.mark.parametrize(
    "command, message",
    [
        ("-u saat_ourss -d speaker_frame", "unknown upstream 'saat_ourss': did you mean 'saat_ours'?"),
        ("-fu saat_ourss -d speaker_frame", "unknown upstream 'saat_ourss'"),
        ("-d speaker_frame", "no upstream: pass -u"),
        ("-u saat_mel -d speaker_fram", "unknown downstream 'speaker_fram': did you mean 'speaker_frame'?"),
        ("-u saat_mel -d phone_linea", "unknown downstream 'phone_linea': did you mean 'phone_linear'?"),
        ("-u saat_mel", "no downstream task: pass -d"),
        ("-u saat_ours -d speaker_frame", "saat_ours: no checkpoint: pass -k FILE"),
        ("-u saat_ours_local -k gone.ckpt -d speaker_frame", "-k: no checkpoint at gone.ckpt"),
        ("-u saat_ours_local -k broken.ckpt -d speaker_frame", "broken.ckpt is not a checkpoint, or a truncated one"),
        ("-u saat_mel -d speaker_frame -c gone.yaml", "-c: no such file: gone.yaml"),
        ("-u saat_mel -d speaker_frame -g gone.yaml", "-g: no such file: gone.yaml"),
        ("-e gone", "-e: no such checkpoint or folder: gone"),
        ("-e .", "-e: no states-N.ckpt in "),
        ("-e broken.ckpt", "-e: broken.ckpt is not a checkpoint, or a truncated one"),
        ("-u saat_mel -d speaker_frame", "datarc.corpus must be a folder or a list of folders, not None"),
        ("-u saat_mel -d speaker_frame -o args.devise=1", "-o: no argument 'devise': did you mean 'device'?"),
        ("-u saat_mel -d speaker_frame -o runner.total_steps=1", "-o: 'runner.total_steps=1' is neither args.NAME"),
        ("-u saat_mel -d speaker_frame -o config.runner.totl_steps=1", "did you mean 'total_steps'?"),
    ],
)
def test_slips_are_one_line_without_traceback(run, tmp_path, capfd, command, message):
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 and no more")
    before = builtins.isinstance
    run(f"-m train {command} -p out", code=2)
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
    assert builtins.isinstance is before and sys.argv == ["run_downstream.py"]
