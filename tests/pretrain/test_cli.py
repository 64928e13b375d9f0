"""The command line: flags, recipes, overrides, what a folder of an experiment holds, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saat import configs
from saat.errors import SaatError
from saat.pretrain import cli
from saat.pretrain.device import choose_device
from saat.pretrain.recipe import OPTIMIZERS, load_recipe, merged, parse_overrides
from saat.upstream.config import model_config, read_yaml

from .conftest import states_of, write_corpus

ROOT = Path(__file__).resolve().parents[2]


# Recipes


def test_packaged_recipes():
    assert configs.names("pretrain") == ["demo", "mini", "paper"]
    for name in configs.names("pretrain"):
        recipe = load_recipe(name)
        config = model_config("saat_ours", (recipe.model, name))
        # R is as large as a crop has tokens: all of it is trained, and no crop needs windows.
        assert config.task.sequence_length == config.transformer.max_length * config.audio.stack
        assert recipe.optimizer.name in OPTIMIZERS and recipe.datarc.demo_corpus == (name == "demo")


def test_paper_recipe_is_the_papers():
    recipe = load_recipe("paper")
    assert model_config("saat_ours", (recipe.model, "")) == model_config("saat_ours")
    runner, optimizer = recipe.runner, recipe.optimizer
    assert (runner.total_steps, runner.gradient_clipping, runner.gradient_accumulate_steps) == (500000, 5.0, 1)
    assert (optimizer.name, optimizer.lr, optimizer.warmup_proportion) == ("lamb", 5e-5, 0.07)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.999], 1e-6, 0.01)
    assert recipe.datarc.train_batch_size == 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runner": {"totl_steps": 3}}, "unknown key 'runner.totl_steps': did you mean 'total_steps'"),
        ({"runer": {}}, "unknown key 'runer': did you mean 'runner'"),
        ({"pretrain_expert": {"datarc": {"corpora": []}}}, "'pretrain_expert.datarc.corpora': did you mean 'corpus'"),
        ({"runner": {"total_steps": "many"}}, "runner.total_steps.*many"),
        ({"runner": {"total_steps": 0}}, "runner.total_steps must be at least 1, not 0"),
        ({"runner": {"max_keep": 0}}, "runner.max_keep must be at least 1"),
        ({"runner": {"gradient_clipping": 0}}, "runner.gradient_clipping must be a positive"),
        ({"runner": 3}, "runner must be a section with keys"),
        ({"optimizer": {"name": "lambda"}}, "unknown optimizer 'lambda': did you mean 'lamb'"),
        ({"optimizer": {"warmup_proportion": 1.0}}, r"warmup_proportion must lie in \[0, 1\)"),
        ({"optimizer": {"betas": [0.9]}}, "betas must be two numbers"),
        ({"pretrain_expert": {"datarc": {"num_workers": -1}}}, "num_workers must be 0 or more"),
    ],
)
def test_bad_recipes(values, message):
    with pytest.raises(SaatError, match=f"my.yaml: .*{message}"):
        load_recipe(values, "my.yaml")


def test_unknown_recipe(tmp_path):
    with pytest.raises(SaatError, match="no pretrain config 'minni'.*did you mean 'mini'"):
        load_recipe("minni")
    with pytest.raises(SaatError, match="no such config file: .*there.yaml"):
        load_recipe(str(tmp_path / "there.yaml"))


# Overrides


def test_overrides():
    config, args = parse_overrides(
        "config.optimizer.lr=1e-3,, config.runner.total_steps = 10 ,,args.seed=3,,config.model.task.target=linear"
    )
    assert args == {"seed": 3} and config["model"] == {"task": {"target": "linear"}}
    recipe = merged(load_recipe("mini"), config, "-o")
    assert recipe.optimizer.lr == 1e-3 and recipe.runner.total_steps == 10 and recipe.optimizer.name == "adamw"
    assert parse_overrides("None") == parse_overrides(None) == ({}, {})
    one = merged(recipe, parse_overrides("config.pretrain_expert.datarc.corpus=/some/where")[0], "-o")
    two = merged(recipe, parse_overrides("config.pretrain_expert.datarc.corpus=[/a, /b]")[0], "-o")
    assert one.datarc.corpus == ["/some/where"] and two.datarc.corpus == ["/a", "/b"]


def test_overrides_are_never_code(tmp_path):
    victim = tmp_path / "x"
    config, _ = parse_overrides(f"config.optimizer.name=open('{victim}', 'w')")
    assert isinstance(config["optimizer"]["name"], str) and not victim.exists()
    with pytest.raises(SaatError, match="not a YAML value"):
        parse_overrides("config.optimizer.name=!!python/object/apply:os.getpid []")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "expected config.SECTION.KEY=VALUE"),
        ("config=3", "expected config.SECTION.KEY=VALUE"),
        ("confg.optimizer.lr=3", "unknown 'confg': did you mean 'config'"),
        ("args.sed=3", "unknown argument 'sed': did you mean 'seed'"),
        ("config.runner=1,,config.runner.save_step=3", "runner was given a value before"),
    ],
)
def test_bad_overrides(text, message):
    with pytest.raises(SaatError, match=message):
        parse_overrides(text)


def test_priorities(run, tmp_path):
    """Recipe, then -g, then -o; -o wins over --seed and --corpus too."""
    (tmp_path / "model.yaml").write_text("transformer: {hidden_size: 36, intermediate_size: 40}")
    other = write_corpus(tmp_path / "other", 4)
    path = run(
        tmp_path / "exp",
        "-g",
        tmp_path / "model.yaml",
        "--seed",
        5,
        o=f"config.model.transformer.intermediate_size=44,,args.seed=6,,config.runner.total_steps=1,,"
        f"config.pretrain_expert.datarc.corpus={other}",
    )
    states = states_of(path)
    transformer = states["Upstream_Config"]["transformer"]
    assert (transformer["hidden_size"], transformer["intermediate_size"], transformer["max_length"]) == (36, 44, 25)
    assert states["Args"]["seed"] == 6 and states["Corpus"]["utterances"] == 4


# The folder of an experiment


def test_what_the_folder_holds(run, tmp_path, recipe, corpus):
    path = run(tmp_path / "exp", o="config.optimizer.lr=2e-3")
    expdir = path.parent
    config = model_config("saat_ours", (read_yaml(expdir / "config_model.yaml"), "test"))
    assert config.to_dict() == states_of(path)["Upstream_Config"]
    assert load_recipe(str(expdir / "config_runner.yaml")).optimizer.lr == 2e-3
    (start,) = map(json.loads, (expdir / "starts.jsonl").read_text().splitlines())
    assert "-o" in start["command"] and start["versions"]["torch"] in torch.__version__ and start["from_step"] == 0
    events = EventAccumulator(str(expdir)).Reload()
    assert [event.step for event in events.Scalars("saat_ours/train-loss")] == [3, 6]
    assert {"saat_ours/train-lr", "saat_ours/train-gradient-norm"} <= set(events.Tags()["scalars"])
    assert {f"saat_ours/train-{name}_spec" for name in ("mask", "pred", "true")} <= set(events.Tags()["images"])
    # The two files start the same run again.
    argv = ["-u", "saat_ours", "-c", f"{expdir}/config_runner.yaml", "-g", f"{expdir}/config_model.yaml"]
    again = cli.pretrain([*argv, "-p", str(tmp_path / "again")], progress=False)
    assert torch.equal(states_of(again)["SpecHead"]["dense.weight"], states_of(path)["SpecHead"]["dense.weight"])


def test_checkpoints_are_not_overwritten(run, tmp_path):
    o = "config.runner.total_steps=4,,config.runner.save_step=2"
    exp = tmp_path / "exp"
    run(exp, o=o)
    with pytest.raises(SaatError, match="already holds checkpoints, up to states-4.ckpt: pass -a"):
        run(exp, o=o)
    with pytest.raises(SaatError, match="holds states-4.ckpt, which going on from .*states-2.ckpt would mix"):
        cli.pretrain(["-e", str(exp / "states-2.ckpt")])
    run(tmp_path / "two", o=o)
    with pytest.raises(SaatError, match="pass another -n or -p"):
        run(tmp_path / "two", "-e", exp / "states-2.ckpt")


# What is refused


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-n", "x"], "no upstream: pass -u NAME"),
        (["-u", "saat_ours"], "no experiment: pass -n NAME"),
        (["-u", "saat_our", "-n", "x"], "unknown upstream 'saat_our': did you mean 'saat_ours'"),
        (["-u", "saat_mel", "-n", "x"], "saat_mel has nothing to train"),
        (["-u", "saat_ours", "-n", "x", "-c", "papr"], "did you mean 'paper'"),
        (["-u", "saat_ours", "-n", "x"], "no corpus: pass --corpus FOLDER"),
        (["-u", "saat_ours", "-n", "x", "--corpus", "nowhere"], "no such folder: .*nowhere"),
        (["-u", "saat_ours", "-n", "x", "-g", "none.yaml"], "no such config file: none.yaml"),
        (["-u", "saat_ours", "-n", "x", "--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["-u", "saat_ours", "-n", "x", "--device", "warp"], "--device warp cannot be used here"),
        (["-u", "saat_ours", "-n", "x", "-o", "args.seed=x"], "'x' is not a whole number"),
        (
            ["-u", "saat_ours", "-n", "x", "-o", "config.model.transformer.hidden_sise=3"],
            "-o config.model: unknown key 'transformer.hidden_sise': did you mean 'hidden_size'",
        ),
        (["-u", "saat_ours", "-n", "x", "-o", "config.model.transformer.hidden_size=50"], "not a multiple of"),
    ],
)
def test_one_line_and_exit_code_2(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("run_pretrain.py: ") and len(said.splitlines()) == 1
    assert re.search(message, said)
    assert not (tmp_path / "result").exists()


def test_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaatError, match="cannot write in .*choose another folder with -p"):
        run(tmp_path / "file" / "exp")


def test_device():
    assert choose_device("cpu") == "cpu"
    assert choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_script_works_from_anywhere(recipe, corpus, tmp_path):
    """Without the package being installed; a corpus given relative to where the user is."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "speech").symlink_to(corpus)
    argv = ["-u", "saat_qk", "-n", "first", "-c", str(recipe), "--corpus", "speech"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_pretrain.py"), *argv],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path == tmp_path / "here" / "result" / "pretrain" / "first" / "states-6.ckpt" and path.is_file()
    assert yaml.safe_load((path.parent / "config_runner.yaml").read_text())["runner"]["total_steps"] == 6
