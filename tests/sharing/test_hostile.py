"""Files that somebody made to do harm, or that were damaged: each is refused, and nothing of them is run."""

import json
import os
import shutil
import struct

import pytest
import torch
from s3prl import hub
from safetensors.torch import save_file

from saat.errors import SaatError
from saat.sharing import actions, published
from saat.sharing import store as store_module
from saat.upstream import checkpoint


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


@pytest.fixture
def folder(ckpt, store, monkeypatch):
    """A published checkpoint to tamper with."""
    monkeypatch.setattr(published, "PATIENCE", (0.0,))
    return actions.publish(str(ckpt()), tag="mini")


def refused(folder, match: str) -> None:
    """By every way in: the hub entry, a path, `saat pull`, `saat push`."""
    for enter in (
        lambda: hub.saat_ours(tag="mini"),
        lambda: hub.saat_ours_local(ckpt=str(folder)),
        lambda: actions.pull(str(folder), tag="copy"),
        lambda: actions.push(str(folder), "owner/repo"),
    ):
        with pytest.raises(SaatError, match=match):
            enter()
    assert not (folder.parent / "copy").exists()


def rewrite(folder, change) -> None:
    """Tampers with the record."""
    path = folder / "config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def sealed(folder) -> None:
    """Makes the record agree with a file that was exchanged, as a malicious publisher would."""
    path = folder / "model.safetensors"
    change = {"sha256": published.file_sha256(path), "bytes": path.stat().st_size}
    rewrite(folder, lambda record: record["weights"].update(change))


@pytest.mark.parametrize("name", ["model.safetensors", "states-9.ckpt"])
def test_a_pickle(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.save({"Transformer": Bomb(), "Upstream_Config": {}}, tmp_path / name)
    with pytest.raises(SaatError, match="cannot read|is not a safetensors file"):
        hub.saat_ours_local(ckpt=str(tmp_path / name))
    shutil.copy(tmp_path / name, folder / "model.safetensors")
    sealed(folder)
    refused(folder, "is not a safetensors file")
    assert not (tmp_path / "bomb-went-off").exists()


def test_a_header_of_10_gb(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 10 * 2**30) + b"{}" + b" " * 100)
    sealed(folder)
    refused(folder, "is not a safetensors file")
    with pytest.raises(SaatError, match="is not a safetensors file"):
        hub.saat_ours_local(ckpt=str(path))


def test_tensors_that_claim_more_than_the_file_holds(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    sealed(folder)
    refused(folder, "is not a safetensors file")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>Not Found</html>", b"", b"\x00" * 50])
def test_html_and_rubbish_instead_of_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "bytes, its record says")
    sealed(folder)
    refused(folder, "is not a safetensors file")


def test_a_safetensors_file_of_something_else(folder):
    save_file({"model.embed.weight": torch.ones(3)}, folder / "model.safetensors")
    sealed(folder)
    refused(folder, "holds no model config of saat")
    metadata = {"saat": json.dumps({"Upstream_Config": {}})}
    save_file({"../../x": torch.ones(3)}, folder / "model.safetensors", metadata=metadata)
    sealed(folder)
    refused(folder, "unknown tensor")
    save_file({"Transformer.x": torch.ones(3)}, folder / "model.safetensors", metadata={"saat": "[" * 100000})
    sealed(folder)
    refused(folder, "is not a safetensors file")


def test_a_wrong_hash(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(folder, "is not the file that was published")


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_damaged_record(folder, cut):
    data = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(data[:cut])
    with pytest.raises(SaatError, match="is not the record of a published checkpoint"):
        hub.saat_ours_local(ckpt=str(folder))
    assert store_module.entries(folder.parent.parent) == []  # passed over, with a line that says so


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "../../../etc/x"}, "cannot be a tag"),
        ({"upstream": "../../x"}, "unknown upstream"),
        ({"upstream": "saat_mel"}, "has no weights"),
        ({"upstream": ["x"]}, "expected the keys"),
        ({"published": "\x1b[2J"}, "is not a time"),
        ({"weights": {"sha256": "../../etc/passwd", "bytes": 1}}, "sha256 of 64 hex digits"),
        ({"pretraining": []}, "expected the keys"),
        ({"format": 99}, "newer than"),
    ],
)
def test_records_with_paths_and_other_nonsense(folder, change, message):
    rewrite(folder, lambda record: record.update(change))
    with pytest.raises(SaatError, match=message):
        actions.pull(str(folder), tag="copy")
    with pytest.raises(SaatError, match=message):
        hub.saat_ours_local(ckpt=str(folder))


def test_a_record_whose_facts_have_odd_types(folder):
    rewrite(folder, lambda record: record["pretraining"].update(steps="many", loss=[], corpus={"hours": {}}))
    assert actions.as_table(actions.listing(), folder)
    with pytest.raises(SaatError, match="the record's facts make no card"):
        actions.pull(str(folder), tag="copy")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mini"]


@pytest.mark.parametrize("tag", ["..", "../mini", "/etc", "a/b", "", ".", "x" * 200])
def test_tags_that_lead_elsewhere(folder, tag):
    with pytest.raises(SaatError, match="cannot be a tag"):
        hub.saat_ours(tag=tag)


@pytest.mark.parametrize("which", ["folder", "upstream", "weights"])
def test_a_link_out_of_the_store(folder, tmp_path, which):
    outside = tmp_path / "outside"
    shutil.copytree(folder.parent, outside)
    if which == "upstream":
        shutil.rmtree(folder.parent)
        os.symlink(outside, folder.parent)
    elif which == "folder":
        shutil.rmtree(folder)
        os.symlink(outside / "mini", folder)
    else:
        (folder / "model.safetensors").unlink()
        os.symlink(outside / "mini" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(SaatError, match="leads out of the store"):
        hub.saat_ours(tag="mini")
    with pytest.raises(SaatError, match="no checkpoint"):
        hub.saat_ours()
    with pytest.raises(SaatError, match="leads out of the store"):
        actions.publish(str(outside / "mini"), tag="mini", force=True)


SHAPES = [
    ({"transformer": {"hidden_size": 96}}, "do not fit the model"),
    ({"transformer": {"hidden_size": 12 * 10**9}}, "do not fit the model"),  # would need more memory than there is
    ({"transformer": {"max_length": 10**9}}, "do not fit the model"),
    ({"transformer": {"intermediate_size": 10**12}}, "do not fit the model"),
    ({"transformer": {"num_hidden_layers": 10**9}}, "at most 1000"),
    ({"audio": {"stack": 5}}, "do not fit the model"),
    ({"audio": {"stack": 10**9}}, "shorter than a token"),
    ({"audio": {"n_freq": 10**9}}, "n_freq must lie in"),
    ({"audio": {"n_mels": 10**9}}, "n_mels be at most"),
    ({"audio": {"win_ms": 1e9}}, "does not fit an FFT"),
    ({"audio": {"delta": 10**9}}, "delta must lie in"),
    ({"audio": {"n_mels": "__import__('os')"}}, "could not be converted"),
    ({"code": "import os"}, "unknown key 'code'"),
]


@pytest.mark.parametrize(("change", "message"), SHAPES)
def test_a_config_that_describes_another_model(ckpt, store, change, message):
    path = ckpt()
    states = checkpoint.load(path)
    for section, values in change.items():
        states["Upstream_Config"][section] = (
            states["Upstream_Config"].get(section, {}) | values if isinstance(values, dict) else values
        )
    checkpoint.save(path, states)
    with pytest.raises(SaatError, match=message):
        hub.saat_ours_local(ckpt=str(path))
    with pytest.raises(SaatError, match=message):
        actions.publish(str(path), tag="mini")
    file = path.with_name("model.safetensors")
    checkpoint.save_safetensors(file, states)
    with pytest.raises(SaatError, match=message):
        hub.saat_ours_local(ckpt=str(file))


def test_a_record_and_weights_that_do_not_belong_together(folder):
    rewrite(folder, lambda record: record["model"]["transformer"].update(num_hidden_layers=12))
    refused(folder, "describe different models")


def test_yaml_overrides_run_nothing(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("upstream: !!python/object/apply:os.system ['touch bomb-went-off']")
    with pytest.raises(SaatError, match="is not valid YAML"):
        hub.saat_ours_untrained(model_config=str(path))
    assert not (tmp_path / "bomb-went-off").exists()
