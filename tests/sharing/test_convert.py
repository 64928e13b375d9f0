"""S3PRL's checkpoints into ours and back, by S3PRL's own classes."""

import argparse

import pytest
import torch
from s3prl import hub

from saat.cli import main
from saat.errors import SaatError
from saat.sharing import actions, published
from saat.sharing.convert import export_s3prl, import_s3prl, load_s3prl
from saat.upstream import checkpoint


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


WAVS = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16001, 23333, 5000)]


def hidden_states(upstream, wav):
    with torch.no_grad():
        return upstream.eval()([wav])["hidden_states"]


def assert_equal(ours, theirs):
    for wav in WAVS:
        mine, their = hidden_states(ours, wav), hidden_states(theirs, wav)
        assert len(mine) == len(their)
        for a, b in zip(mine, their, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("entry", ["audio_albert_local", "mockingjay_local", "tera_local"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("delta", [0, 2])
def test_imported_models_have_s3prls_hidden_states(entry, share, delta, tmp_path, s3prl_checkpoint):
    path = s3prl_checkpoint(tmp_path / "s.ckpt", {"share_layer": share}, {"delta": delta}, legacy=delta == 2)
    out = import_s3prl(path, tmp_path / "states-7.ckpt")
    ours = hub.saat_qk_local(ckpt=str(out))
    assert ours.get_downsample_rates("") == 160
    assert_equal(ours, getattr(hub, entry)(ckpt=str(path)))


@pytest.mark.parametrize("share", [True, False])
def test_exported_models_have_our_hidden_states_in_s3prl(ckpt, small, share, tmp_path):
    transformer = small["transformer"] | {"share_layers": share, "initializer_range": 0.2}
    path = ckpt("saat_qk", audio={"delta": 1, "stack": 1}, transformer=transformer)
    out = export_s3prl(path, tmp_path / "s3prl.ckpt")
    ours, theirs = hub.saat_qk_local(ckpt=str(path)), hub.audio_albert_local(ckpt=str(out))
    assert_equal(ours, theirs)
    back = import_s3prl(out, tmp_path / "back.ckpt")
    before, after = checkpoint.load(path)["Transformer"], checkpoint.load(back)["Transformer"]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": {"pre_layer_norm": True}}, "has pre_layer_norm: True; saat_qk can only be False"),
        ({"transformer": {"hidden_act": "relu"}}, "has hidden_act: relu"),
        ({"features": {"feat_type": "mfcc"}}, "has feat_type: mfcc"),
        ({"features": {"log": False}}, "has log: False"),
        ({"audio": {"kaldi": {"feat_type": "fbank"}}}, "Kaldi features"),
        ({"audio": {"target_level": -25}}, "extracted beforehand"),
        ({"Upstream_Config": {}}, "it has no model config"),
        ({"Transformer": {"x": torch.ones(1)}}, "not the weights of S3PRL's transformer"),
        ({"Transformer": None}, "it lacks Transformer"),
    ],
)
def test_what_cannot_be_imported_exactly_is_refused(change, message, tmp_path, s3prl_checkpoint):
    path = s3prl_checkpoint(tmp_path / "s.ckpt", **change)
    with pytest.raises(SaatError, match=message):
        import_s3prl(path, tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_layers_that_differ_are_not_shared(tmp_path, s3prl_checkpoint):
    path = s3prl_checkpoint(tmp_path / "s.ckpt", {"share_layer": False})
    states = torch.load(path, weights_only=False)
    states["Upstream_Config"]["transformer"]["share_layer"] = True
    torch.save(states, path)
    with pytest.raises(SaatError, match="differs from layer 0"):
        import_s3prl(path, tmp_path / "out.ckpt")


def test_nothing_pickled_is_run(tmp_path, monkeypatch, s3prl_checkpoint):
    monkeypatch.chdir(tmp_path)
    path = s3prl_checkpoint(tmp_path / "s.ckpt", Scheduler=Bomb())
    import_s3prl(path, tmp_path / "out.ckpt")  # the bomb becomes an inert object
    path = s3prl_checkpoint(tmp_path / "t.ckpt", Transformer=Bomb())
    with pytest.raises(SaatError, match="it lacks Transformer"):
        import_s3prl(path, tmp_path / "out2.ckpt")
    assert not (tmp_path / "bomb-went-off").exists()
    for content in (b"", b"<html>", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(SaatError, match="cannot read"):
            import_s3prl(path, tmp_path / "out2.ckpt")


def test_what_torch_may_load_is_the_same_afterwards(ckpt, tmp_path, s3prl_checkpoint):
    """S3PRL's runner reads its own checkpoints after ours were read."""
    before = set(torch.serialization.get_safe_globals())
    assert argparse.Namespace in before  # as compat has it
    checkpoint.load(ckpt())
    load_s3prl(s3prl_checkpoint(tmp_path / "s.ckpt"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_commands_and_the_card(store, tmp_path, capsys, ckpt, s3prl_checkpoint):
    path = s3prl_checkpoint(tmp_path / "aalbert.ckpt")
    out = str(tmp_path / "imported" / "states-7.ckpt")
    assert main(["import", str(path), out]) == 0
    assert main(["import", str(path), out]) == 2
    assert "is there already" in capsys.readouterr().err
    folder = actions.publish(out)
    assert "S3PRL checkpoint aalbert.ckpt, SHA-256 " + published.file_sha256(path) in (folder / "README.md").read_text()
    assert main(["export", "saat_qk", str(tmp_path / "s3prl.ckpt"), "--format", "s3prl"]) == 0
    assert main(["export", str(ckpt()), str(tmp_path / "x.ckpt"), "--format", "s3prl"]) == 2
    assert "has the attention of saat_qk only" in capsys.readouterr().err
    assert main(["export", str(ckpt("saat_qk")), str(tmp_path / "x.ckpt"), "--format", "s3prl"]) == 2
    assert "stacks 3 frames a token" in capsys.readouterr().err
