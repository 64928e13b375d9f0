"""S3PRL's expectations of an upstream, for every entry; checkpoints good and bad."""

from functools import partial

import pytest
import torch
import yaml
from s3prl import hub
from s3prl.nn import S3PRLUpstream
from s3prl.util.pseudo_data import get_pseudo_wavs

import saat
from saat.errors import SaatError
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert

ENTRIES = [name if entry.attention is None else f"{name}_local" for name, entry in REGISTRY.items()]


def write_checkpoint(path, name: str, overrides: dict) -> str:
    config = model_config(name, (overrides, "test"))
    states = {"Upstream_Config": config.to_dict(), "Step": 1}
    if config.attention is not None:
        states["Transformer"] = AudioAlbert(config).state_dict()
    checkpoint.save(path, states)
    return str(path)


@pytest.fixture
def ckpt(tmp_path, small):
    """Makes a checkpoint of a small model."""
    return lambda name="saat_ours", **more: write_checkpoint(tmp_path / f"{name}.ckpt", name, small | more)


def upstream(entry: str, ckpt) -> S3PRLUpstream:
    path = ckpt(entry.removesuffix("_local")) if entry.endswith("_local") else None
    return S3PRLUpstream(entry, path_or_url=path)


@pytest.mark.parametrize("entry", ENTRIES)
def test_s3prls_expectations(entry, ckpt):
    model = upstream(entry, ckpt)
    for sizes in (dict(min_secs=0.05, max_secs=0.05, n=1), dict(min_secs=0.05, max_secs=0.05, n=2)):
        wavs, lengths = get_pseudo_wavs(padded=True, **sizes)
        sum(h.sum() for h in model(wavs, lengths)[0]).backward()
    with torch.autograd.set_detect_anomaly(True):
        wavs, lengths = get_pseudo_wavs(padded=True, min_secs=0.05, max_secs=1, n=3)
        sum(h.sum() for h in model(wavs, lengths)[0]).backward()
    layers = model.num_layers
    assert layers == (1 if entry == "saat_mel" else 4)
    assert model.downsample_rates == [480] * layers
    assert len(model.train()(wavs, lengths)[0]) == layers
    model.eval()
    with torch.no_grad():
        (first, n), (second, _) = model(wavs, lengths), model(wavs, lengths)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert n[0].tolist() == [-(-int(s) // 480) for s in lengths]


@pytest.mark.parametrize("entry", ENTRIES)
def test_alone_equals_in_a_batch(entry, ckpt):
    expert = upstream(entry, ckpt).upstream.eval().double()
    wavs = [0.1 * torch.randn(n, dtype=torch.float64) for n in (16000, 700, 40001)]  # the last needs windows
    with torch.no_grad():
        together = expert(wavs)["last_hidden_state"]
        for row, wav in zip(together, wavs, strict=True):
            alone = expert([wav])["last_hidden_state"][0]
            torch.testing.assert_close(row[: len(alone)], alone, atol=1e-9, rtol=0)


def test_hub_has_four_entries_an_upstream_and_registering_again_changes_nothing():
    before = {name for name in dir(hub) if name.startswith("saat_")}
    saat.register()
    assert before == {name for name in dir(hub) if name.startswith("saat_")}
    assert {"saat_ours", "saat_ours_local", "saat_ours_url", "saat_ours_untrained"} <= before
    assert len(before) == 4 * len(REGISTRY) - 1 and set(before) <= set(hub.options())


def test_s3prl_setting_has_stride_160(ckpt):
    model = S3PRLUpstream("saat_qk_local", path_or_url=ckpt("saat_qk", audio={"delta": 0, "stack": 1}))
    assert model.downsample_rates == [160] * 4 and model.hidden_sizes == [48] * 4


def test_untrained_control_takes_a_checkpoints_shape_but_not_its_weights(ckpt):
    path = ckpt("saat_ours")
    trained, control, again, other = (
        hub.saat_ours_local(ckpt=path),
        hub.saat_ours_untrained(ckpt=path),
        hub.saat_ours_untrained(ckpt=path),
        hub.saat_ours_untrained(ckpt=path, seed=1),
    )
    weights = [m.encoder.layer.output.weight for m in (trained, control, again, other)]
    assert all(w.shape == weights[0].shape for w in weights)
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert hub.saat_qk_untrained(ckpt=path).model_config.transformer == trained.model_config.transformer


def test_building_an_upstream_leaves_the_callers_random_numbers_alone(ckpt):
    path = ckpt()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hub.saat_ours_local(ckpt=path)
    assert torch.equal(torch.rand(3), expected)


def test_model_config_from_a_file(tmp_path, small):
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump(small))
    assert hub.saat_ours_untrained(model_config=str(file)).model_config.transformer.hidden_size == 48


def test_no_checkpoint():
    with pytest.raises(SaatError, match="saat_ours: no checkpoint: pass -k FILE .*saat pull .*saat publish"):
        hub.saat_ours()
    with pytest.raises(SaatError, match="saat_ours_local: no checkpoint: pass -k FILE"):
        hub.saat_ours_local()
    with pytest.raises(SaatError, match="no checkpoint at nowhere.ckpt"):
        hub.saat_ours_local(ckpt="nowhere.ckpt")


def test_checkpoint_of_another_variant(ckpt):
    with pytest.raises(SaatError, match="is a checkpoint of saat_qk, not of saat_ours: use -u saat_qk"):
        hub.saat_ours_local(ckpt=ckpt("saat_qk"))


def test_truncated_checkpoint(ckpt, tmp_path):
    whole = (tmp_path / "x").with_name("saat_ours.ckpt")
    data = whole.read_bytes() if whole.exists() else open(ckpt(), "rb").read()
    for keep in (len(data) // 2, 10, 0):
        whole.write_bytes(data[:keep])
        with pytest.raises(SaatError, match="not a checkpoint, or a truncated one"):
            hub.saat_ours_local(ckpt=str(whole))


def test_not_a_checkpoint(tmp_path):
    page = tmp_path / "page.ckpt"
    page.write_text("<html>not found</html>")
    with pytest.raises(SaatError, match="not a checkpoint"):
        hub.saat_ours_local(ckpt=str(page))
    torch.save({"state": torch.ones(1)}, page)
    with pytest.raises(SaatError, match="it lacks Transformer, Upstream_Config"):
        hub.saat_ours_local(ckpt=str(page))


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"Transformer": Bomb(), "Upstream_Config": {}}, tmp_path / "bomb.ckpt")
    with pytest.raises(SaatError, match="cannot read .* as a checkpoint of plain tensors"):
        hub.saat_ours_local(ckpt=str(tmp_path / "bomb.ckpt"))
    assert not (tmp_path / "bomb-went-off").exists()


def test_weights_that_do_not_fit_their_config(ckpt):
    path = ckpt()
    states = checkpoint.load(path)
    states["Upstream_Config"]["transformer"]["hidden_size"] = 96
    checkpoint.save(path, states)
    with pytest.raises(SaatError, match="do not fit the model"):
        hub.saat_ours_local(ckpt=path)


@pytest.mark.parametrize("entry", ["saat_ours_local", "saat_ours_untrained"])
def test_a_model_config_does_not_change_a_checkpoints(ckpt, tmp_path, small, entry):
    path, options = ckpt("saat_ours", audio={"n_mels": 20}), tmp_path / "options.yaml"
    build = partial(getattr(hub, entry), ckpt=path, model_config=str(options))
    options.write_text(yaml.safe_dump(small | {"audio": {"n_mels": 20}, "quantize": "int8"}))
    assert build().quantize == "int8"
    options.write_text("audio: {n_mels: 10}")
    with pytest.raises(SaatError, match="options.yaml: another model.*n_mels: 20 in the checkpoint, 10 here"):
        build()
    options.write_text("quantise: int8")
    with pytest.raises(SaatError, match="quantise"):
        build()


def test_a_full_disk_leaves_the_last_checkpoint(ckpt, monkeypatch, tmp_path):
    path = ckpt()
    before = open(path, "rb").read()

    def full(states, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SaatError, match="cannot save .*No space left on device.*resume with -a"):
        checkpoint.save(path, {})
    assert open(path, "rb").read() == before and [p.name for p in tmp_path.iterdir()] == ["saat_ours.ckpt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_samples_are_named(ckpt, bad):
    expert = hub.saat_ours_local(ckpt=ckpt())
    wav = torch.zeros(1000)
    wav[17] = bad
    with pytest.raises(SaatError, match="waveform 1 of the batch has a NaN or infinite value at sample 17"):
        expert([torch.ones(500), wav])
    with pytest.raises(SaatError, match="waveform 0 of the batch has shape"):
        expert([torch.ones(0)])


def test_silence_is_finite(ckpt):
    for state in hub.saat_ours_local(ckpt=ckpt())([torch.zeros(16000)])["hidden_states"]:
        assert state.isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"transformr": {}}, "unknown key 'transformr': did you mean 'transformer'"),
        ({"transformer": {"hiden_size": 3}}, "unknown key 'transformer.hiden_size': did you mean 'hidden_size'"),
        ({"attention": {"smoothin": 0.1}}, "did you mean 'smoothing'"),
        ({"transformer": {"hidden_size": 50}}, "not a multiple of"),
        ({"transformer": {"hidden_size": "many"}}, "could not be converted to Integer"),
        ({"task": {"mask_proportion": 0}}, "mask_proportion"),
        ({"attention": {"init": "paterns"}}, "'patterns' or 'authors'"),
        ({"upstream": "saat_qk"}, "is a config of 'saat_qk'"),
    ],
)
def test_config_errors_say_what_and_where(overrides, message):
    with pytest.raises(SaatError, match=message):
        model_config("saat_ours", (overrides, "file.yaml"))


def test_unknown_upstream_names_the_nearest():
    with pytest.raises(SaatError, match="unknown upstream 'saat_our': did you mean 'saat_ours'"):
        model_config("saat_our")


def test_every_variant_has_a_packaged_config_without_surprises():
    for name in REGISTRY:
        config = model_config(name)
        assert config.upstream == name and config.audio.stride == 480 and config.audio.input_dim == 480
        assert config.transformer.hidden_size == 768 and config.transformer.num_hidden_layers == 6
