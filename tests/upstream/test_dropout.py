"""Our dropout against torch's definition."""

import pytest
import torch

from saat.upstream.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(7, 333, 48), (1, 1, 3), (5,)])
def test_a_share_p_is_zero_and_the_rest_scaled(p, shape):
    torch.manual_seed(0)
    x = torch.rand(shape) + 1
    x.requires_grad_()
    y = Dropout(p)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=1e-4, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept / (1 - p), rtol=1e-4, atol=0)
    if x.numel() > 1000:
        assert abs(float((~kept).float().mean()) - p) < 0.005


def test_every_lane_of_a_word_is_uniform_and_independent():
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(200000, 4)) != 0).float()
    torch.testing.assert_close(kept.mean(0), torch.full((4,), 0.7), rtol=0, atol=0.005)
    torch.testing.assert_close(torch.corrcoef(kept.T), torch.eye(4), rtol=0, atol=0.01)


def test_none_in_eval_at_zero_or_one():
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(3, 5))


def test_the_seed_decides_and_bfloat16_works():
    x = torch.ones(50, 7, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = Dropout(0.1)(x)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.1)(x)) and first.dtype == torch.bfloat16
    assert not torch.equal(first, Dropout(0.1)(x))
