"""`saat export --format onnx`: by onnxruntime, the hidden states of the upstream, on real lengths."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch

from saat.cli import main
from saat.sharing import onnx_export
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config
from saat.upstream.expert import UpstreamExpert
from saat.upstream.features import Features

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sharing.md"
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx_export.PACKAGES), reason="needs s3prl-saat[onnx]"
)
VARIANTS = [entry for entry in REGISTRY.values() if entry.attention is not None]
REFUSED = [entry.name for entry in VARIANTS if entry.attention.not_elsewhere is not None]
EXPORTED = [entry.name for entry in VARIANTS if entry.attention.not_elsewhere is None]
# Weights as large as training makes them: at 0.02, attention is nearly uniform and errors in it are not seen.
LARGE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 96,
         "max_length": 40, "initializer_range": 0.2}  # fmt: skip


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(model, wavs, samples=None):
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    samples = torch.tensor([len(wav) for wav in wavs] if samples is None else samples)
    states, tokens = model.run(None, {"wavs": padded.numpy(), "samples": samples.numpy()})
    return torch.from_numpy(states), tokens.tolist()


def precise(upstream, wavs):
    """The upstream's hidden states, its features computed in float64."""
    features, lengths = Features(upstream.model_config.audio).double()([wav.double() for wav in wavs])
    with torch.no_grad():
        return torch.stack(upstream.encoder(features.float(), lengths))


def equal(model, upstream, wavs):
    states, tokens = run(model, wavs)
    with torch.no_grad():
        torch.testing.assert_close(states, torch.stack(upstream(wavs)["hidden_states"]), atol=1e-4, rtol=0)
    assert tokens == [-(-len(wav) // upstream.model_config.audio.stride) for wav in wavs]
    for i, wav in enumerate(wavs):  # alone as in the batch
        torch.testing.assert_close(run(model, [wav])[0][:, 0], states[:, i, : tokens[i]], atol=1e-5, rtol=0)


def noise(n, level=0.1):
    return level * torch.randn(n, generator=torch.Generator().manual_seed(n))


def check_all(path, out):
    """Export, then each property that an exported file has."""
    assert main(["export", "--format", "onnx", str(path), str(out)]) == 0
    model = session(out)
    about = json.loads(model.get_modelmeta().custom_metadata_map["saat"])
    config = model_config(about["Upstream_Config"]["upstream"], (about["Upstream_Config"], "metadata"))
    upstream = UpstreamExpert(config.upstream, ckpt=str(path)).eval()
    assert upstream.model_config == config and about["Step"] == 9
    for lengths in ([1], [480, 479, 481], [5000, 160, 19200], [201, 200, 199], [19199, 7777]):
        equal(model, upstream, [noise(n) for n in lengths])
    # Quiet, loud, silent, and silent in between: what is added before the logarithm counts.
    gap = noise(9000)
    gap[2000:5000] = 0
    equal(model, upstream, [noise(6001, 1e-4), noise(5555, 30.0), torch.zeros(700), gap, noise(3000, 1e-9)])
    for samples in ([0, 5], [5, 1001], [-1, 5]):
        with pytest.raises(Exception, match="samples_must_be_from_1_to_the_length_of_wavs"):
            run(model, [noise(1000), noise(1000)], samples)
    too_long = 480 * 40 + 1
    if upstream.encoder.layers()[0].attention.max_length is None:
        equal(model, upstream, [noise(too_long), noise(900)])
    else:
        with pytest.raises(Exception, match="at_most_40_tokens"):
            run(model, [noise(too_long), noise(900)])
    return model, upstream


@needs_onnx
def test_ours(ckpt, tmp_path, monkeypatch, capsys):
    """All that one export can show: torch takes many seconds for one."""
    path, out = ckpt("saat_ours", transformer=LARGE), tmp_path / "saat_ours.onnx"
    check_all(path, out)
    before = out.read_bytes()
    assert main(["export", "--format", "onnx", str(path), str(out)]) == 2
    assert "saat_ours.onnx is there already" in capsys.readouterr().err and out.read_bytes() == before

    # Another model's graph stands for one that was exported wrongly: what is there stays.
    wrong = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda part: shutil.copy(out, part))
    monkeypatch.setattr(onnx_export, "_program", lambda upstream: wrong)
    other = ckpt("saat_ours", seed=1, folder="other", transformer=LARGE)
    assert main(["export", "--format", "onnx", "--force", str(other), str(out)]) == 2
    assert "differs by" in capsys.readouterr().err and out.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.onnx*")] == ["saat_ours.onnx"]

    # The example in the documentation.
    monkeypatch.chdir(tmp_path)
    for name, n in (("one", 16000), ("two", 9000)):
        soundfile.write(f"{name}.wav", noise(n).numpy(), 16000)
    (example,) = re.findall(r"```python\n(import numpy.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(example, names)
    assert names["hidden_states"].shape == (3, 2, 34, 48) and names["tokens"].tolist() == [34, 19]


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "saat_ours"])
def test_every_variant(ckpt, tmp_path, name):
    check_all(ckpt(name, transformer=LARGE), tmp_path / "it.onnx")


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("audio", [{"delta": 0, "stack": 1}, {"cmvn": False}, {"delta": 2, "win_ms": 20.0}])
def test_other_features(ckpt, tmp_path, audio):
    path, out = ckpt("saat_qk", transformer=LARGE | {"share_layers": False}, audio=audio), tmp_path / "it.onnx"
    assert onnx_export.export_onnx(path, out) == out
    upstream = UpstreamExpert("saat_qk", ckpt=str(path)).eval()
    for lengths in ([1], [480, 479, 481, 1], [5000, 160, 9600]):
        equal(session(out), upstream, [noise(n) for n in lengths])


@needs_onnx
@pytest.mark.slow
def test_real_speech(ckpt, tmp_path, librispeech_small):
    path, out = ckpt("saat_ours", transformer=LARGE | {"max_length": 500}), tmp_path / "it.onnx"
    onnx_export.export_onnx(path, out)
    upstream, model = UpstreamExpert("saat_ours", ckpt=str(path)).eval(), session(out)
    files = sorted(librispeech_small.rglob("*.flac"))[::40]
    speech = [torch.from_numpy(soundfile.read(file, dtype="float32")[0])[: 480 * 500] for file in files]
    for i in range(0, len(speech) - 3, 4):
        a, b, c, d = speech[i : i + 4]
        wavs = [a, 1e-3 * b, 30 * c, d[3000:3700]]
        # What the upstream's own float32 features round off in the quiet bands of loud frames is not the graph's.
        torch.testing.assert_close(run(model, wavs)[0], precise(upstream, wavs), atol=1e-4, rtol=0)


@needs_onnx
@pytest.mark.parametrize("name", REFUSED)
def test_variants_that_select_keys_are_refused(ckpt, tmp_path, capsys, name):
    assert main(["export", "--format", "onnx", str(ckpt(name)), str(tmp_path / "it.onnx")]) == 2
    assert f"{name} cannot be exported: it selects the keys" in capsys.readouterr().err
    assert not list(tmp_path.glob("*it.onnx*"))


def test_what_to_install(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", "--format", "onnx", str(ckpt()), str(tmp_path / "it.onnx")]) == 2
    assert "needs" in (error := capsys.readouterr().err) and "pip install 's3prl-saat[onnx]'" in error
