"""Int8: close to float32, through S3PRL's own ways of giving an upstream options."""

import pytest
import torch
from s3prl import hub
from s3prl.nn import S3PRLUpstream

from saat.errors import SaatError
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert

VARIANTS = [name for name, entry in REGISTRY.items() if entry.attention is not None]

if "onednn" not in torch.backends.quantized.supported_engines:
    pytest.skip("this build of torch has no int8 kernels", allow_module_level=True)


@pytest.fixture
def ckpt(tmp_path, small):
    def write(name):
        config = model_config(name, (small, "test"))
        torch.manual_seed(0)
        states = {"Upstream_Config": config.to_dict(), "Transformer": AudioAlbert(config).state_dict(), "Step": 1}
        checkpoint.save(tmp_path / f"{name}.ckpt", states)
        return str(tmp_path / f"{name}.ckpt")

    return write


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_are_close(name, ckpt):
    """Alone and in a batch; and deterministic. The LSH variants select other keys where scores are near ties."""
    wavs = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16000, 9000)]
    engine = torch.backends.quantized.engine
    full = getattr(hub, f"{name}_local")(ckpt=ckpt(name)).eval()
    small = getattr(hub, f"{name}_local")(ckpt=ckpt(name), quantize="int8").eval()
    assert torch.backends.quantized.engine == engine
    kinds = [type(module).__module__ for module in small.encoder.modules()]
    assert sum("quantized.dynamic" in kind for kind in kinds) >= 4
    with torch.no_grad():
        expected, found = full(wavs)["last_hidden_state"], small(wavs)["last_hidden_state"]
        assert torch.equal(found, small(wavs)["last_hidden_state"])
    assert float((found - expected).norm() / expected.norm()) < 0.05
    assert not torch.equal(found, expected) and not found[1, 19:].any()


def test_through_s3prl(ckpt, tmp_path):
    path = ckpt("saat_ours")
    by_extra = S3PRLUpstream("saat_ours_local", path_or_url=path, extra_conf={"quantize": "int8"}).eval()
    options = tmp_path / "int8.yaml"
    options.write_text("quantize: int8\n")
    by_file = hub.saat_ours_local(ckpt=path, model_config=str(options)).eval()
    wav = torch.randn(16000)
    with torch.no_grad():
        a, b = by_extra(wav[None], torch.tensor([16000]))[0][-1], by_file([wav])["last_hidden_state"]
    assert torch.equal(a, b) and by_file.quantize == "int8"


def test_refusals(ckpt, monkeypatch):
    path = ckpt("saat_ours")
    with pytest.raises(SaatError, match="unknown scheme 'int4'.*int8"):
        hub.saat_ours_local(ckpt=path, quantize="int4")
    model = hub.saat_ours_local(ckpt=path, quantize="int8").eval()
    elsewhere = torch.zeros(1, 2, 480, device="meta")
    monkeypatch.setattr(model.features, "forward", lambda wavs: (elsewhere, torch.tensor([2])))
    with pytest.raises(SaatError, match="int8 is for the CPU, not for meta"):
        model([torch.randn(900)])
