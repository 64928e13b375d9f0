"""Fixed weights: the patterns of SPEC section 2.4, the shared softmax, its cache."""

import copy

import pytest
import torch

from saat.upstream.attention import variant
from saat.upstream.attention.patterns import head_categories
from saat.upstream.config import TransformerConfig

L = 50


def fixed(name: str = "saat_ours", heads: int = 12, length: int = L, **config):
    entry = variant(name)
    torch.manual_seed(0)
    transformer = TransformerConfig(hidden_size=heads * 2, num_attention_heads=heads, max_length=length)
    return entry.attention(transformer, entry.config(**config)).eval()


def pattern(kind: str, i: int, j: int, length: int) -> float:
    """One unnormalised entry of SPEC section 2.4."""
    return {
        "identity": float(i == j),
        "previous": float(j == max(i - 1, 0)),
        "next": float(j == min(i + 1, length - 1)),
        "past": float((j + 1) ** 3) if j <= i else 0.0,
        "future": float((length - j) ** 3) if j >= i else 0.0,
        "increasing": float((j + 1) ** 3),
        "decreasing": float((length - j) ** 3),
    }[kind]


ORDER = {
    12: ["identity", "previous", "next", "past", "future", "increasing", "decreasing"],
    8: ["identity", "previous", "next", "increasing", "decreasing"],
    4: ["identity", "previous", "increasing"],
}


@pytest.mark.parametrize("n", [L, 31, 2, 1])
@pytest.mark.parametrize("heads", ORDER)
def test_softmax_of_r_starts_as_the_patterns(heads, n):
    module = fixed(heads=heads)
    with torch.no_grad():
        weights = module.weights(torch.zeros(1, n, heads * 2), torch.tensor([n]))[0]
    for head, kind in enumerate(ORDER[heads]):
        full = torch.tensor([[pattern(kind, i, j, L) for j in range(L)] for i in range(L)]).double()
        full = 0.99 * full / full.sum(-1, keepdim=True) + 0.01 / L
        cropped = full[:n, :n] / full[:n, :n].sum(-1, keepdim=True)
        torch.testing.assert_close(weights[head].double(), cropped, atol=1e-6, rtol=1e-4)
    for head in range(len(ORDER[heads]), heads):
        high = module.R[head].softmax(-1) > 0.05
        assert (high.sum(-1) == 8).all() and high.tril().any(-1).all()


def test_categories_keep_the_proportions():
    assert {n: head_categories(n) for n in (12, 8, 4, 1, 2, 3, 6, 16, 24)} == {
        12: (5, 2, 5), 8: (3, 2, 3), 4: (2, 1, 1), 1: (1, 0, 0), 2: (1, 0, 1), 3: (1, 1, 1),
        6: (3, 1, 2), 16: (7, 3, 6), 24: (10, 4, 10),
    }  # fmt: skip


def test_a_row_whose_keys_are_cut_off_is_uniform():
    with torch.no_grad():
        weights = fixed().weights(torch.zeros(1, 10, 24), torch.tensor([10]))[0]
    torch.testing.assert_close(weights[2, 9], torch.full((10,), 0.1))  # next: row 9 looks at column 10


def test_the_authors_start():
    R = fixed(init="authors").R.detach()
    assert torch.equal(R[0], torch.eye(L))
    assert R[1, 0, 1] == 1 and R[1, L - 1, 0] == 1  # next, wrapping around
    assert R[2, 1, 0] == 1 and R[2, 0, L - 1] == 1  # previous, wrapping around
    assert (R[3].triu(-1) == 0).all() and R[3, 10, 8] > R[3, 10, 0] > 0
    assert (R[4].tril(1) == 0).all() and R[4, 10, 40] > R[4, 10, 12] > 0  # grows away from the frame
    assert R[5, 0, L - 1] > R[5, 0, 0] and R[6, 0, 0] > R[6, 0, L - 1]
    assert abs(float(R[7:].std()) - 1) < 0.05
    weights = R[:7].softmax(-1)
    assert weights.max() < 3 / L  # nearly uniform, unlike ours
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, L))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_maximum_lies_beyond_the_utterance(dtype):
    module = fixed("saat_syn_random", heads=2).to(dtype)
    with torch.no_grad():
        module.R[0, ::3, 40:] += 1000  # exp underflows for every shorter utterance
        module.R[1, 5] = torch.linspace(-2000, 2000, L)
    hidden = torch.randn(4, L, 4, dtype=dtype)
    lengths = torch.tensor([L, 39, 7, 41])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            value = module.split(module.value(hidden))
            expected = (module.weights(hidden, lengths) @ value).transpose(1, 2).flatten(2)
            found = module(hidden, lengths)
            for row, n in enumerate(lengths.tolist()):
                torch.testing.assert_close(found[row, :n], expected[row, :n], atol=1e-5, rtol=1e-4)
            if grad:
                (g,) = torch.autograd.grad(sum(found[b, :n].sum() for b, n in enumerate([L, 39, 7, 41])), module.R)
                assert g.isfinite().all()


def count_softmaxes(module, monkeypatch) -> list:
    calls = []
    normalise = type(module)._normalise
    monkeypatch.setattr(type(module), "_normalise", lambda self: calls.append(1) or normalise(self))
    return calls


def test_cached_in_eval_without_gradients_only(monkeypatch):
    module = fixed()
    calls = count_softmaxes(module, monkeypatch)
    hidden, lengths = torch.randn(2, 30, 24), torch.tensor([30, 11])
    with torch.no_grad():
        for n in (30, 20, 11):
            module(hidden[:, :n], lengths.clamp_max(n))
    assert len(calls) == 1
    module(hidden, lengths)
    module(hidden, lengths)
    assert len(calls) == 3
    module.train()
    with torch.no_grad():
        module(hidden, lengths)
        module(hidden, lengths)
    assert len(calls) == 5


def changed_in_place(module):
    with torch.no_grad():
        module.R.add_(torch.randn_like(module.R))
    return module


def loaded(module):
    module.load_state_dict({k: torch.randn_like(v) for k, v in module.state_dict().items()})
    return module


def moved(module):
    module.R.data = module.R.data + torch.randn_like(module.R)
    return module.double().float()


def copied(module):
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.R.add_(torch.randn_like(other.R))
    return other


def trained(module):
    module.train()
    module.R.data.add_(torch.randn_like(module.R))
    return module.eval()


@pytest.mark.parametrize("change", [changed_in_place, loaded, moved, copied, trained])
def test_the_cache_is_dropped_when_r_changes(change):
    module = fixed()
    hidden, lengths = torch.randn(2, 30, 24), torch.tensor([30, 11])
    with torch.no_grad():
        before = module(hidden, lengths)
        module = change(module)
        found = module(hidden, lengths)
        expected = (module.weights(hidden, lengths) @ module.split(module.value(hidden))).transpose(1, 2).flatten(2)
    assert not torch.allclose(before[0], found[0], atol=1e-3)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1, :11], expected[1, :11], atol=1e-5, rtol=1e-4)


def test_works_in_inference_mode():
    with torch.inference_mode():
        module = fixed()
        first = module(torch.ones(1, 9, 24), torch.tensor([9]))
        assert torch.equal(first, module(torch.ones(1, 9, 24), torch.tensor([9])))


@pytest.mark.parametrize("name", ["saat_ours", "saat_syn_random"])
def test_no_tensor_a_batch_times_heads_times_square(name):
    module, B, n = fixed(name), 16, L
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        module.train()(torch.randn(B, n, 24), torch.tensor([n] + [20] * (B - 1)))
    assert largest <= max(12 * n * n, B * n * 24)
