"""Going on from a checkpoint: what comes from it, what the command line may change, and what is refused."""

import pytest
import torch
import yaml

from saat.errors import SaatError
from saat.pretrain import cli
from saat.pretrain.plan import Plan

from .conftest import TINY, states_of, write_corpus


def test_what_e_takes_from_the_checkpoint(run, tmp_path, monkeypatch, capsys):
    exp = tmp_path / "exp"
    run(exp, "--seed", 9, o="config.runner.total_steps=2")
    monkeypatch.chdir(tmp_path)
    argv = ["-e", str(exp), "-n", "next", "-o", "config.runner.total_steps=3"]
    path = cli.pretrain(argv, progress=False)
    assert path == tmp_path / "result" / "pretrain" / "next" / "states-3.ckpt"
    assert "seed come from it" in capsys.readouterr().out
    states = states_of(path)
    assert states["Args"]["seed"] == 9 and states["Config"]["optimizer"]["lr"] == TINY["optimizer"]["lr"]
    # Without -p or -n in the checkpoint's own folder; -o args.seed wins.
    path = cli.pretrain(["-e", str(path), "-o", "config.runner.total_steps=4,,args.seed=3"], progress=False)
    assert path.parent.name == "next" and path.name == "states-4.ckpt" and states_of(path)["Args"]["seed"] == 3


def test_o_wins_over_the_optimizers_state(run, tmp_path):
    run(tmp_path / "exp", o="config.runner.total_steps=2")
    optimizer = {"lr": 0.5, "weight_decay": 0.25, "betas": [0.5, 0.6]}
    o = ",,".join(["config.runner.total_steps=3", *(f"config.optimizer.{k}={v}" for k, v in optimizer.items())])
    group = states_of(run(tmp_path / "exp", "-a", o=o))["Optimizer"]["param_groups"][0]
    assert group["lr"] == 0.5 / 3 and group["weight_decay"] == 0.25 and group["betas"] == (0.5, 0.6)
    with pytest.raises(SaatError, match="has the state of adamw, lamb cannot go on from it"):
        run(tmp_path / "exp", "-a", o="config.runner.total_steps=4,,config.optimizer.name=lamb")
    with pytest.raises(SaatError, match="another model than that of .*hidden_size: 24 in the checkpoint, 48 here"):
        run(tmp_path / "exp", "-a", o="config.runner.total_steps=4,,config.model.transformer.hidden_size=48")


def test_a_starts_where_there_is_nothing(run, tmp_path):
    assert run(tmp_path / "exp", "-a", o="config.runner.total_steps=1").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no checkpoint at .*x.ckpt: pass -e FILE or FOLDER"),
        (lambda p: p.write_bytes(b"x" * 100), "is not a checkpoint, or a truncated one"),
        (lambda p: torch.save({"a": 1}, p), "is not a checkpoint of saat: it lacks Transformer"),
        (
            lambda p: torch.save({"Transformer": {}, "Upstream_Config": {}}, p),
            "cannot be resumed from: it lacks SpecHead",
        ),
        (lambda p: torch.save({"Transformer": Plan}, p), "cannot read .*as a checkpoint of plain tensors"),
        (lambda p: p.mkdir(), r"no checkpoint \(states-N.ckpt\) in"),
    ],
)
def test_no_checkpoint(tmp_path, make, message):
    make(tmp_path / "x.ckpt")
    with pytest.raises(SaatError, match=message):
        cli.pretrain(["-e", str(tmp_path / "x.ckpt")])


def test_checkpoint_of_another_variant(run, tmp_path):
    run(tmp_path / "exp", o="config.runner.total_steps=1")
    with pytest.raises(SaatError, match="states-1.ckpt is a checkpoint of saat_ours, not of saat_qk"):
        run(tmp_path / "exp", "-a", upstream="saat_qk")


def test_a_resume_says_what_differs(run, recipe, corpus, tmp_path, capsys):
    exp = tmp_path / "exp"
    run(exp, o="config.runner.total_steps=2")
    with pytest.raises(SaatError, match=r"-g: another model.*transformer.max_length: 25 in the checkpoint, 40 here"):
        (tmp_path / "model.yaml").write_text("transformer: {max_length: 40}")
        cli.pretrain(["-e", str(exp), "-g", str(tmp_path / "model.yaml")])
    with pytest.raises(SaatError, match=r"another model.*audio.n_mels: 10 in the checkpoint, 80 here"):
        cli.pretrain(["-e", str(exp), "-c", "paper"])
    with pytest.raises(SaatError, match="--corpus .*elsewhere: .*was trained on .*datarc.corpus="):
        run(exp, "-a", "--corpus", write_corpus(tmp_path / "elsewhere", 3))
    with pytest.raises(SaatError, match="--seed 5: .* was trained with 1337"):
        run(exp, "-a", "--seed", "5")
    capsys.readouterr()
    other = {**TINY, "optimizer": {"name": "adamw", "lr": 0.5}}
    recipe.write_text(yaml.safe_dump(other))
    path = run(exp, "-a", o="config.runner.total_steps=3,,config.model.task.mask_proportion=0.5")
    said = capsys.readouterr().out
    assert "only -o changes them: optimizer.lr: 0.001 in the checkpoint, 0.5 here" in said
    states = states_of(path)
    assert states["Config"]["optimizer"]["lr"] == 0.001 and states["Upstream_Config"]["task"]["mask_proportion"] == 0.5
    run(exp, "-a", "--corpus", corpus, "--seed", "1337", o="config.runner.total_steps=4")
