"""torch.compile of every variant's encoder gives the eager result."""

import pytest
import torch

from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert

VARIANTS = [name for name, entry in REGISTRY.items() if entry.attention is not None]


def check(name: str, small: dict, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AudioAlbert(model_config(name, (small, "test"))).eval()
    x, lengths = torch.randn(2, 30, 480), torch.tensor([30, 21])
    with torch.no_grad():
        eager = model(x, lengths)
        compiled = torch.compile(model, backend=backend)(x, lengths)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_equals_eager(name, small):
    check(name, small, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_by_inductor_equals_eager(name, small):
    check(name, small, "inductor")
