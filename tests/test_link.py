"""`saat link` and `saat unlink`, on a folder laid out like a checkout of S3PRL, and on a real one if there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from saat.cli import main
from saat.errors import SaatError
from saat.link import link, unlink
from saat.sharing import actions
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config

TRAINED = sorted(name for name, entry in REGISTRY.items() if entry.attention is not None)


@pytest.fixture
def checkout(tmp_path) -> Path:
    pretrain = tmp_path / "s3prl" / "s3prl" / "pretrain"
    (pretrain / "audio_albert").mkdir(parents=True)
    for file in ("__init__.py", "runner.py", "audio_albert/pretrain_expert.py", "../run_pretrain.py"):
        (pretrain / file).write_text("# S3PRL's\n")
    return tmp_path / "s3prl"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_link_adds_and_unlink_takes_away(checkout, capsys):
    before = contents(checkout)
    assert main(["link", str(checkout)]) == 0
    pretrain = checkout / "s3prl" / "pretrain"
    assert sorted(path.name for path in pretrain.glob("saat_*")) == TRAINED
    linked = contents(checkout)
    assert before.items() <= linked.items()
    assert link(checkout / "s3prl") and contents(checkout) == linked  # again, and by the inner folder
    assert main(["unlink", str(checkout)]) == 0
    assert contents(checkout) == before
    assert main(["unlink", str(checkout)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was linked there"


@pytest.mark.parametrize("name", TRAINED)
def test_s3prls_script_finds_one_folder_with_what_it_reads(checkout, name):
    link(checkout)
    pretrain = checkout / "s3prl" / "pretrain"
    # The rule of s3prl/run_pretrain.py.
    (found,) = [u for u in os.listdir(pretrain) if re.search(f"^{u}_|^{u}$", name)]
    assert found == name
    runner = yaml.safe_load((pretrain / name / "config_runner.yaml").read_text())
    assert runner["optimizer"]["name"] == "Lamb_with_schedule"
    assert runner["runner"]["total_steps"] > max(runner["runner"]["log_step"], runner["runner"]["save_step"])
    values = yaml.safe_load((pretrain / name / "config_model.yaml").read_text())
    assert model_config(name, (values, "linked")).upstream == name
    code = f"from pretrain.{name}.pretrain_expert import UpstreamPretrainExpert as E; print(E.__module__)"
    if name == "saat_ours":
        done = subprocess.run([sys.executable, "-c", code], cwd=pretrain.parent, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])})  # fmt: skip
        assert done.stdout.strip() == "saat.pretrain.pretrain_expert", done.stderr


def test_what_somebody_changed_stays(checkout):
    link(checkout)
    config = checkout / "s3prl" / "pretrain" / "saat_ours" / "config_runner.yaml"
    config.write_text(config.read_text().replace("500000", "7"))
    for command in (link, unlink):
        with pytest.raises(SaatError, match="saat_ours was changed since it was linked .config_runner.yaml.: move it"):
            command(checkout)
    assert "7" in config.read_text() and (config.parent.parent / "saat_qk").is_dir()


def test_what_is_not_ours_or_no_checkout(checkout, tmp_path):
    own = checkout / "s3prl" / "pretrain" / "saat_ours"
    own.mkdir()
    with pytest.raises(SaatError, match="saat_ours was not made by `saat link`"):
        link(checkout)
    assert unlink(checkout) == [] and own.is_dir()
    with pytest.raises(SaatError, match="is not a checkout of S3PRL"):
        link(tmp_path)


@pytest.mark.slow
def test_s3prls_own_scripts_train(tmp_path, librispeech_small, monkeypatch):
    """Both, untouched, in a real checkout: S3PRL_CHECKOUT=/path/to/s3prl pytest -m slow tests/test_link.py."""
    if "S3PRL_CHECKOUT" not in os.environ:
        pytest.skip("S3PRL_CHECKOUT is not set")
    checkout = Path(os.environ["S3PRL_CHECKOUT"])
    model = {"transformer": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12,
             "intermediate_size": 96, "max_length": 60}, "task": {"sequence_length": 180}}  # fmt: skip
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"upstream": "saat_ours", **model}))
    monkeypatch.setenv("SAAT_CHECKPOINTS", str(tmp_path / "store"))

    def saat_run(script: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "saat.cli", "run", script, "--device", "cpu", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(command, cwd=checkout / "s3prl", capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    steps = "config.runner.total_steps=4,,config.runner.log_step=2,,config.runner.save_step=2"
    link(checkout)
    try:
        datarc = "config.pretrain_expert.datarc"
        saat_run("run_pretrain.py", "-u", "saat_ours", "-g", str(tmp_path / "model.yaml"), "-n", "x", "-p",
                 str(tmp_path / "pre"), "-o", f"{datarc}.corpus={librispeech_small / 'test-other'},,"
                 f"{datarc}.train_batch_size=2,,{datarc}.num_workers=0,,{steps}")  # fmt: skip
        saat_run("run_pretrain.py", "-e", str(tmp_path / "pre" / "states-4.ckpt"))
    finally:
        unlink(checkout)
    actions.publish(str(tmp_path / "pre" / "states-4.ckpt"), tag="x")
    datarc, root = "config.downstream_expert.datarc", Path(__file__).resolve().parents[1]
    speech, splits = librispeech_small / "train-clean-5", librispeech_small / "alignments"
    saat_run("run_downstream.py", "-m", "train", "-u", "saat_ours", "-d", "speaker_utterance", "-p",
             str(tmp_path / "down"), "-c", str(root / "downstream" / "speaker_utterance" / "config.yaml"), "-o",
             f"{datarc}.corpus={speech},,{datarc}.splits={splits},,{datarc}.num_workers=0,,"
             f"config.runner.eval_step=4,,{steps}")  # fmt: skip
    assert (tmp_path / "down" / "states-4.ckpt").is_file()
