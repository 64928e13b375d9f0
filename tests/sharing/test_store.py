"""Publishing, listing and finding checkpoints in a store."""

import argparse
import json
import threading

import pytest
import torch
import yaml
from s3prl import hub
from s3prl.nn import S3PRLUpstream
from s3prl.optimizers import WarmupLinearSchedule
from safetensors import safe_open

import saat
from saat.cli import main
from saat.errors import SaatError
from saat.sharing import actions, published
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY

TRAINED = [name for name, entry in REGISTRY.items() if entry.attention is not None]


@pytest.mark.parametrize("name", TRAINED)
def test_a_published_model_is_the_one_that_was_trained(name, ckpt, store):
    path = ckpt(name)
    actions.publish(str(path), tag="mini")
    wavs = [0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        expected = getattr(hub, f"{name}_local")(ckpt=str(path)).eval()(wavs)["last_hidden_state"]
        found = getattr(hub, name)().eval()(wavs)["last_hidden_state"]
    assert torch.equal(found, expected)


def test_what_lies_in_the_store(ckpt, store):
    folder = actions.publish(str(ckpt()), tag="mini", licence="CC-BY-4.0")
    assert folder == store / "saat_ours" / "mini"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["mini"]  # nothing temporary is left
    record = json.loads((folder / "config.json").read_text())
    assert record["pretraining"]["steps"] == 9 and record["pretraining"]["seed"] == 3
    assert record["weights"]["sha256"] == published.file_sha256(folder / "model.safetensors")
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    for fact in ("arXiv:2006.05174", "`saat_ours`", "9 of 9", "LibriSpeech/train-clean-100", "`mini`", "hours unknown"):
        assert fact in card
    assert "secret" not in card + json.dumps(record)


def test_shared_layers_are_stored_once(ckpt, store):
    folder = actions.publish(str(ckpt("saat_qk")))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert sum(name.endswith("attention.query.weight") for name in names) == 1


def test_the_default_is_the_newest_or_the_one_that_was_said(ckpt, store):
    actions.publish(str(ckpt(seed=1)), tag="one", default=True)
    actions.publish(str(ckpt(seed=2)), tag="two")
    actions.publish(str(ckpt("saat_qk", seed=3)), tag="three")
    actions.publish(str(ckpt("saat_qk", seed=4)), tag="four")
    assert {row["name"] for row in actions.listing() if row["default"]} == {"saat_ours.one", "saat_qk.four"}
    saat.register()
    weight = {name: getattr(hub, name)().encoder.layer.output.weight for name in ("saat_ours", "saat_ours.two")}
    assert not torch.equal(weight["saat_ours"], weight["saat_ours.two"])
    assert torch.equal(weight["saat_ours"], checkpoint.load(ckpt(seed=1))["Transformer"]["layer.output.weight"])
    assert "saat_ours.two" in S3PRLUpstream.available_names()
    assert S3PRLUpstream("saat_ours.two").num_layers == 4


def test_what_s3prls_own_pretraining_saved_can_be_published(ckpt, store):
    path = ckpt()
    states = checkpoint.load(path)
    states["Args"] = argparse.Namespace(seed=1337, config="pretrain/saat_ours/config_runner.yaml")
    states["Optimizer"] = {"param_groups": [{"schedule": WarmupLinearSchedule(0.1, 10)}]}
    states["Config"]["pretrain_expert"]["datarc"]["corpus"] = "/data/LibriSpeech/dev-clean"  # one folder, not a list
    del states["Corpus"]
    checkpoint.save(path, states)
    card = (actions.publish(str(path), tag="s3prl") / "README.md").read_text()
    assert "; LibriSpeech/dev-clean |" in card and "seed 1337" in card
    assert hub.saat_ours_local(ckpt=str(path)).encoder is not None


def test_unknown_tags_and_upstreams_name_the_nearest(ckpt, store):
    actions.publish(str(ckpt()), tag="mini")
    with pytest.raises(SaatError, match=r"saat_ours.mimi: no such checkpoint in the store .* did you mean 'mini'"):
        hub.saat_ours(tag="mimi")
    with pytest.raises(SaatError, match="saat pull"):
        hub.saat_qk(tag="mini")
    with pytest.raises(SaatError, match="is a checkpoint of saat_ours"):
        actions.publish(str(ckpt()), name="saat_qk", tag="x")


def test_files_and_folders_serve_as_checkpoints_too(ckpt, store):
    folder = actions.publish(str(ckpt()))
    assert folder.name == "saat_ours"  # by default the folder's name
    for path in (folder, folder / "model.safetensors"):
        assert hub.saat_ours_local(ckpt=str(path)).encoder is not None
        assert hub.saat_qk_untrained(ckpt=str(path)).model_config.transformer.hidden_size == 48
    with pytest.raises(SaatError, match="is a checkpoint of saat_ours, not of saat_qk"):
        hub.saat_qk_local(ckpt=str(folder))


def test_nothing_is_overwritten_without_force(ckpt, store):
    folder = actions.publish(str(ckpt(seed=1)), tag="mini")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(SaatError, match="is published already: choose another --tag, or pass --force"):
        actions.publish(str(ckpt(seed=2)), tag="mini")
    assert (folder / "config.json").read_bytes() == before
    actions.publish(str(ckpt(seed=2)), tag="mini", force=True)
    assert (folder / "config.json").read_bytes() != before
    assert [path.name for path in folder.parent.iterdir()] == ["mini"]
    published.read(folder)


def test_a_full_disk_leaves_what_was_there(ckpt, store, monkeypatch):
    folder = actions.publish(str(ckpt(seed=1)), tag="mini")
    before = (folder / "config.json").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for target, name in ((checkpoint, "save_file"), (published.os, "fsync"), (published.Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(SaatError, match="No space left"):
                actions.publish(str(ckpt(seed=2)), tag="mini", force=True)
        assert (folder / "config.json").read_bytes() == before
        assert [path.name for path in folder.parent.iterdir()] == ["mini"]


def test_of_many_publishers_one_wins(ckpt, store):
    paths = [ckpt(seed=i, folder=f"lab{i}") for i in range(8)]
    won, refused = [], []

    def publish(path):
        try:
            won.append(actions.publish(str(path), tag="mini"))
        except SaatError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=publish, args=(path,)) for path in paths]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1 and len(refused) == 7 and all("published already" in text for text in refused)
    published.read(won[0])


def test_readers_are_never_disturbed_by_publishers_that_force(ckpt, store):
    paths = [str(ckpt(seed=i, folder=f"lab{i}")) for i in range(2)]
    folder = actions.publish(paths[0], tag="mini")
    problems, done = [], threading.Event()

    def publish(path):
        try:
            for _ in range(8):
                actions.publish(path, tag="mini", force=True)
        except SaatError as error:
            problems.append(error)

    def read():
        while not done.is_set():
            try:
                published.read(folder)
            except SaatError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=publish, args=(path,)) for path in paths]
    [thread.start() for thread in (reader, *writers)]
    [thread.join() for thread in writers]
    done.set()
    reader.join()
    assert not problems
    assert [path.name for path in folder.parent.iterdir()] == ["mini"]


def probe_run(folder, upstream: str, ckpt, **more):
    folder.mkdir()
    result = {"probe": "phoneme_1hidden", "split": "test", "accuracy": 0.5, "chance": 0.25, "utterances": 7, "step": 3}
    (folder / "accuracy-test.json").write_text(json.dumps(result))
    args = {"upstream": upstream, "upstream_ckpt": ckpt, "upstream_feature_selection": "last_hidden_state", **more}
    (folder / "args_2026-01-01-00-00-00.yaml").write_text(yaml.safe_dump(args))
    return str(folder)


def test_probe_results_are_recorded_if_they_are_of_this_checkpoint(ckpt, store, tmp_path):
    path, other = ckpt(seed=1), ckpt(seed=2, folder="elsewhere")
    good = probe_run(tmp_path / "good", "saat_ours_local", str(path))
    folder = actions.publish(str(path), tag="mini", probes=[good])
    assert "| phoneme, one hidden layer | 50.0 | 25.0 | 7 | last_hidden_state |" in (folder / "README.md").read_text()
    for name, upstream, used in (("a", "saat_ours_local", str(other)), ("b", "saat_ours_untrained", str(path)),
                                 ("c", "saat_ours_local", "/gone.ckpt")):  # fmt: skip
        with pytest.raises(SaatError, match="--probe .* which is not"):
            actions.publish(str(path), tag="x", probes=[probe_run(tmp_path / name, upstream, used)])
    with pytest.raises(SaatError, match="no test result there"):
        actions.publish(str(path), tag="x", probes=[str(tmp_path)])
    # Later, on the published one, by its name.
    late = probe_run(tmp_path / "late", "saat_ours.mini", None, upstream_feature_selection="hidden_states")
    actions.publish("saat_ours.mini", probes=[late], force=True)
    record = published.read_record(folder)
    assert [probe["features"] for probe in record["probes"]] == ["last_hidden_state", "hidden_states"]
    assert record["pretraining"]["steps"] == 9


def test_commands(ckpt, store, capsys):
    path = str(ckpt())
    assert main(["list", "--store"]) == 0
    assert "is empty: `saat publish FILE`" in capsys.readouterr().out
    assert main(["publish", path, "--tag", "mini", "--licence", "MIT"]) == 0
    assert capsys.readouterr().out.strip() == str(store / "saat_ours" / "mini")
    assert main(["publish", path, "--tag", "mini"]) == 2
    assert "published already" in capsys.readouterr().err
    assert main(["list", "--store"]) == 0
    assert "saat_ours.mini  *        9" in capsys.readouterr().out
    assert main(["list", "--store", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["licence"] == "MIT"
    assert main(["list", "--store", str(store / "nowhere")]) == 2
    for tag in ("../x", "default", ".hidden", "a/b", ""):
        assert main(["publish", path, "--tag", tag]) == (0 if tag == "" else 2)
