"""`saat export --format onnx`: by onnxruntime, the hidden states of the upstream, on real lengths."""

import importlib.util

import pytest
import soundfile
import torch

from saat.cli import main
from saat.sharing import onnx_export
from saat.upstream.expert import UpstreamExpert

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx_export.PACKAGES), reason="needs s3prl-saat[onnx]"
)


def run(path, wavs):
    import onnxruntime

    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    samples = torch.tensor([len(wav) for wav in wavs])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    states, tokens = session.run(None, {"wavs": padded.numpy(), "samples": samples.numpy()})
    return torch.from_numpy(states), tokens.tolist()


@needs_onnx
@pytest.mark.parametrize(
    "name, audio", [("saat_qk", {"delta": 0, "stack": 1}), ("saat_ours", {}), ("saat_syn_mdense", {"cmvn": False})]
)
def test_hidden_states_are_the_upstreams(ckpt, tmp_path, capsys, name, audio):
    path = ckpt(name, audio=audio)
    assert main(["export", "--format", "onnx", str(path), str(tmp_path / "it.onnx")]) == 0
    upstream = UpstreamExpert(name, ckpt=str(path)).eval()
    for lengths in ([1], [480, 479, 481], [5000, 160, 19200], [201, 200, 199], [19199, 7777]):
        wavs = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in lengths]
        states, tokens = run(tmp_path / "it.onnx", wavs)
        with torch.no_grad():
            expected = torch.stack(upstream(wavs)["hidden_states"])
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)
        assert tokens == [-(-n // upstream.model_config.audio.stride) for n in lengths]
    assert main(["export", "--format", "onnx", str(path), str(tmp_path / "it.onnx")]) == 2
    assert "it.onnx is there already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.glob("*it.onnx*")] == ["it.onnx"]


@needs_onnx
def test_real_speech_and_more_than_l_tokens(ckpt, tmp_path, librispeech_small):
    path, out = ckpt("saat_ours"), tmp_path / "it.onnx"
    onnx_export.export_onnx(path, out)
    upstream = UpstreamExpert("saat_ours", ckpt=str(path)).eval()
    files = sorted(librispeech_small.rglob("*.flac"))[:3]
    wavs = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]
    cut = [wav[20000 : 39200 - 777 * i] for i, wav in enumerate(wavs)]  # the small model has 40 tokens
    with torch.no_grad():
        expected = torch.stack(upstream(cut)["hidden_states"])
    torch.testing.assert_close(run(out, cut)[0], expected, atol=1e-4, rtol=0)
    with pytest.raises(Exception, match="(?i)onnxruntime|broadcast|shape|dimension"):
        run(out, [torch.randn(480 * 41)])


@needs_onnx
def test_a_model_that_differs_is_not_written(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "LOG_FLOOR", 1e-3)
    assert main(["export", "--format", "onnx", str(ckpt("saat_qk")), str(tmp_path / "it.onnx")]) == 2
    assert "differs by" in capsys.readouterr().err and not list(tmp_path.glob("*it.onnx*"))


@needs_onnx
@pytest.mark.parametrize("name", ["saat_xbox", "saat_sparse_strided"])
def test_variants_that_choose_keys_by_the_data_are_refused(ckpt, tmp_path, capsys, name):
    assert main(["export", "--format", "onnx", str(ckpt(name)), str(tmp_path / "it.onnx")]) == 2
    assert f"{name} cannot be exported" in capsys.readouterr().err


def test_what_to_install(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", "--format", "onnx", str(ckpt()), str(tmp_path / "it.onnx")]) == 2
    assert "needs" in (error := capsys.readouterr().err) and "s3prl-saat[onnx]" in error
