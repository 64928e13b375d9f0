"""Every variant: `forward` is `weights @ V`, in values and gradients, at odd sizes; rows, padding, precision."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from saat.upstream.attention import REGISTRY, variant
from saat.upstream.attention.lsh import LSH
from saat.upstream.config import TransformerConfig

VARIANTS = [name for name, entry in REGISTRY.items() if entry.attention is not None]
L = 300
SIZES = [1, 2, 31, 32, 33, 63, 100, 257, L]
HEADS = [1, 2, 3, 12]


def attention(name: str, heads: int = 3, head_size: int = 8, length: int = L, dtype=torch.float64, **config):
    """A variant in eval with weights far from uniform."""
    torch.manual_seed(0)
    transformer = TransformerConfig(hidden_size=heads * head_size, num_attention_heads=heads, max_length=length)
    entry = variant(name)
    module = entry.attention(transformer, entry.config(**config))
    for parameter in module.parameters():
        if parameter.dim() <= 2 or name == "saat_syn_mdense":
            torch.nn.init.normal_(parameter, std=0.5)
    return module.to(dtype).eval()


def hidden_states(B: int, T: int, H: int, dtype=torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(B, T, H, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_definition(module, hidden: Tensor, lengths: Tensor) -> Tensor:
    """weights @ V, (B, T, H); zero beyond each utterance's end."""
    return (module.weights(hidden, lengths) @ module.split(module.value(hidden))).transpose(1, 2).flatten(2)


def real_rows(lengths: Tensor, size: int) -> Tensor:
    return (torch.arange(size) < lengths[:, None])[..., None]


def ragged(size: int) -> list[int]:
    return [size, max(1, size // 2), 1, max(1, size - 1)]


def assert_forward_is_the_definition(module, hidden: Tensor, lengths: Tensor, tolerance: float) -> None:
    """Values, and gradients of every parameter and of the input."""
    probe = hidden_states(*hidden.shape, dtype=hidden.dtype, seed=9) * real_rows(lengths, hidden.shape[1])
    results = []
    for function in (module, lambda h, n: by_definition(module, h, n)):
        h = hidden.clone().requires_grad_()
        module.zero_grad()
        out = torch.where(real_rows(lengths, h.shape[1]), function(h, lengths), 0)
        (out * probe).sum().backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
        results.append({"context": out.detach(), "input": h.grad, **gradients})
    fast, slow = results
    # One scale for all: a key's bias has gradient zero, the difference of large numbers.
    scale = max(1.0, *(float(value.abs().max()) for value in slow.values()))
    for key, expected in slow.items():
        torch.testing.assert_close(
            fast[key], expected, atol=tolerance * scale, rtol=0, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_definition_float64(name, size):
    module = attention(name)
    for lengths in ([size], ragged(size)):
        hidden = hidden_states(len(lengths), size, 24)
        assert_forward_is_the_definition(module, hidden, torch.tensor(lengths), 1e-9)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_definition_for_any_number_of_heads(name, heads):
    module = attention(name, heads, length=64)
    lengths = torch.tensor([63, 32, 7])
    assert_forward_is_the_definition(module, hidden_states(3, 63, heads * 8), lengths, 1e-9)


@pytest.mark.parametrize("size", [2, 33, 257])
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_definition_float32(name, size):
    module = attention(name, dtype=torch.float32)
    hidden = hidden_states(4, size, 24, torch.float32)
    assert_forward_is_the_definition(module, hidden, torch.tensor(ragged(size)), 1e-4)


def option_values():
    """Every variant with each of its options set to something else than the default."""
    others = {"share_heads": True, "bottleneck": 5, "init": "authors", "n_hashes": 3, "num_keys": 7, "vector_rows": 13}
    for name in VARIANTS:
        known = {f.name for f in fields(variant(name).config)}
        yield from ((name, key, value) for key, value in others.items() if key in known)


@pytest.mark.parametrize(("name", "key", "value"), option_values())
def test_forward_is_the_definition_with_options(name, key, value):
    module = attention(name, heads=12, length=64, **{key: value})
    assert_forward_is_the_definition(module, hidden_states(3, 50, 96), torch.tensor([50, 31, 2]), 1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_sum_to_one_over_the_utterance_and_padding_has_none(name):
    module = attention(name, heads=12, length=64)
    lengths = torch.tensor([64, 1, 33, 2])
    with torch.no_grad():
        weights = module.weights(hidden_states(4, 64, 96), lengths)
    assert weights.shape == (4, 12, 64, 64) and (weights >= 0).all()
    for row, n in zip(weights, lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:, :n].sum(-1), torch.ones(12, n).double(), atol=1e-12, rtol=0)
        assert (row[:, :, n:] == 0).all() and (row[:, n:] == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_alone_equals_in_any_batch(name):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        if dtype == torch.float32 and issubclass(variant(name).attention, LSH):
            continue  # rounding flips near-ties: held in test_lsh.py
        module = attention(name, dtype=dtype)
        lengths = torch.tensor([60, 17, 300, 1])
        hidden = hidden_states(4, 300, 24, dtype)
        hidden[2] *= 100  # a loud neighbour
        for b, n in enumerate(lengths.tolist()):
            hidden[b, n:] = (-1) ** b * 1e4  # rubbish in the padding
        with torch.no_grad():
            together = module(hidden, lengths)
            for b, n in enumerate(lengths.tolist()):
                alone = module(hidden[b : b + 1, :n], lengths[b : b + 1])
                scale = max(1.0, float(alone.abs().max()))
                torch.testing.assert_close(together[b, :n], alone[0], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_autocast_and_float16_are_close_to_float32(name):
    module = attention(name, dtype=torch.float32)
    lengths = torch.tensor([100, 63, 2])
    hidden = hidden_states(3, 100, 24, torch.float32)
    rows = real_rows(lengths, 100).expand(-1, -1, 24)
    with torch.no_grad():
        # Random vectors alone select keys; low precision flips near-ties, so LSH is compared where all keys are seen.
        if isinstance(module, LSH):
            hidden, rows, lengths = hidden[:, :32], rows[:, :32], lengths.clamp_max(32)
        full = module(hidden, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            bf16 = module(hidden, lengths).float()
        half = module.half()(hidden.half(), lengths).float()
    scale = full[rows].abs().max()
    assert bf16[rows].isfinite().all() and half[rows].isfinite().all()
    assert (bf16 - full)[rows].abs().max() < 0.05 * scale
    assert (half - full)[rows].abs().max() < 0.01 * scale


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["tiny", "huge", "all equal", "zeros"])
def test_extreme_inputs_stay_finite(name, kind):
    module = attention(name, dtype=torch.float32)
    unit = torch.nn.functional.normalize(hidden_states(2, 70, 24, torch.float32), dim=-1)
    inputs = {"tiny": 1e-6 * unit, "huge": 1e4 * unit, "all equal": torch.ones_like(unit), "zeros": 0 * unit}
    hidden = inputs[kind].requires_grad_()
    out = module(hidden, torch.tensor([70, 41]))
    assert out[0].isfinite().all() and out[1, :41].isfinite().all()
    (out[0].sum() + out[1, :41].sum()).backward()
    assert hidden.grad.isfinite().all() and all(
        p.grad.isfinite().all() for p in module.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_eval_is_deterministic_and_attention_dropout_only_in_training(name):
    entry = variant(name)
    transformer = TransformerConfig(
        hidden_size=24, num_attention_heads=3, max_length=64, attention_probs_dropout_prob=0.5
    )
    module = entry.attention(transformer, entry.config())
    hidden, lengths = hidden_states(2, 60, 24, torch.float32), torch.tensor([60, 20])
    module.eval()
    assert torch.equal(module(hidden, lengths), module(hidden, lengths))
    module.train()
    assert not torch.equal(module(hidden, lengths), module(hidden, lengths))


def test_no_name_followed_by_an_underscore_begins_another():
    assert not [(a, b) for a in REGISTRY for b in REGISTRY if b.startswith(a + "_")]


def test_fourteen_upstreams_as_in_the_paper():
    assert len(REGISTRY) == 14 and len({entry.paper_row for entry in REGISTRY.values()}) == 14
