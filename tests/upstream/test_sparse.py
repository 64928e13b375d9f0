"""Sparse supports are the sets of SPEC section 2.2; nothing of size n x n is computed."""

import math

import pytest
import torch

from saat.upstream.attention import variant
from saat.upstream.config import TransformerConfig

NAMES = ["saat_sparse_strided", "saat_sparse_fixed"]


def sparse(name: str, heads: int = 3, head_size: int = 4):
    entry = variant(name)
    torch.manual_seed(0)
    return entry.attention(
        TransformerConfig(hidden_size=heads * head_size, num_attention_heads=heads), entry.config()
    ).eval()


def sees(name: str, local: bool, i: int, j: int, n: int) -> bool:
    """SPEC section 2.2, key by key."""
    step = int(math.sqrt(n))
    if name == "saat_sparse_strided":
        return abs(i - j) <= step if local else (i - j) % step == 0
    return i // step == j // step if local else j % step == step - 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 10, 24, 25, 26, 63, 64, 65])
@pytest.mark.parametrize("name", NAMES)
def test_supports_equal_the_sets(name, n):
    module = sparse(name)  # 3 heads: two local, one global
    with torch.no_grad():
        weights = module.weights(torch.randn(2, 70, 12), torch.tensor([n, 70]))
    for head, local in enumerate([True, True, False]):
        expected = torch.tensor([[sees(name, local, i, j, n) for j in range(n)] for i in range(n)])
        assert torch.equal(weights[0, head, :n, :n] > 0, expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_of_n_by_n(name):
    module, n = sparse(name, heads=2), 3000
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with torch.no_grad(), Watch():
        module(torch.randn(1, n, 8), torch.tensor([n]))
    assert largest < n * n / 10
