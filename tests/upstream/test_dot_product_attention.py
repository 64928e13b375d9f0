"""Dot-product attention in training in bfloat16 on a CPU, where plain products take the fused kernel's place."""

import pytest
import torch
import torch.nn.functional as F

from saat.upstream.attention import base

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 3, 20, 25, 16


def masks():
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=generator) > 0.6
    own[..., 3] = True  # each query sees a key
    padding = torch.arange(KEYS) < torch.tensor([KEYS, 7])[:, None]
    return {"none": None, "padding": padding[:, None, None, :], "own": own}


def both(attention, mask, scale, dtype):
    """The context and the gradients of q, k and v."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(QUERIES, SIZE), (KEYS, SIZE), (KEYS, SIZE)]
    given = [torch.randn(BATCH, HEADS, *shape, generator=generator) for shape in shapes]
    given = [x.bfloat16().to(dtype).requires_grad_() for x in given]  # the same numbers in either precision
    context = attention(*given, mask, scale=scale)
    context.backward(torch.linspace(-1, 1, context.numel()).view(context.shape).bfloat16().to(dtype))
    return [context.detach(), *(x.grad for x in given)]


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("autocast", [False, True])
def test_products_are_the_fused_kernel(mask, scale, autocast, monkeypatch):
    mask = masks()[mask]
    exact = both(F.scaled_dot_product_attention, mask, scale, torch.float32)

    def must_not_run(*args, **kwargs):
        raise AssertionError("the fused kernel ran")

    monkeypatch.setattr(F, "scaled_dot_product_attention", must_not_run)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = both(base.dot_product_attention, mask, scale, torch.float32 if autocast else torch.bfloat16)
    for one, other in zip(got, exact, strict=True):
        assert one.isfinite().all()
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_elsewhere_the_fused_kernel_runs(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **rest: calls.append(q.dtype) or q)
    q = torch.randn(1, 1, 4, 8)
    base.dot_product_attention(q.clone().requires_grad_(), q, q)
    with torch.no_grad():
        base.dot_product_attention(q.bfloat16(), q.bfloat16(), q.bfloat16())
    assert calls == [torch.float32, torch.bfloat16]
    many = torch.randn(1, 1, base.PRODUCTS_UP_TO + 1, 8, dtype=torch.bfloat16, requires_grad=True)
    base.dot_product_attention(many, many, many)
    assert len(calls) == 3


def test_dropout():
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 400, 8, dtype=torch.bfloat16, requires_grad=True)
    v = torch.ones(1, 1, 400, 8, dtype=torch.bfloat16)
    context = base.dot_product_attention(q, q, v, dropout=0.25)
    assert context.unique().numel() > 10 and float(context.mean()) == pytest.approx(1, abs=0.01)
