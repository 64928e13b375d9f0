"""The encoder: S3PRL's Audio ALBERT with our `qk`, true lengths, windows."""

import pytest
import torch
from s3prl.upstream.mockingjay.builder import position_encoding
from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel
from torch.utils.flop_counter import FlopCounterMode

from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert, sinusoidal_positions
from saat.upstream.s3prl_weights import from_s3prl
from saat.upstream.windows import Windows, fade, window_starts

VARIANTS = [name for name, entry in REGISTRY.items() if entry.attention is not None]
LIMITED = [name for name in VARIANTS if REGISTRY[name].attention.limited]


def encoder(name: str, overrides: dict, dtype=torch.float32, std: float = 0.15) -> AudioAlbert:
    """A small encoder in eval, its weights far enough from zero to matter."""
    torch.manual_seed(0)
    model = AudioAlbert(model_config(name, (overrides, "test")))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=std)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.to(dtype).eval()


def batch(lengths: list[int], dim: int = 480, dtype=torch.float32) -> torch.Tensor:
    x = torch.randn(len(lengths), max(lengths), dim, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for row, n in zip(x, lengths, strict=True):
        row[n:] = 1e3  # rubbish: padding must not matter
    return x


def test_qk_with_s3prls_weights_gives_s3prls_hidden_states():
    config = {
        "hidden_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "intermediate_size": 192,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.2,
        "layer_norm_eps": 1e-12,
        "share_layer": True,
        "pre_layer_norm": False,
    }
    torch.manual_seed(3)
    theirs = TransformerModel(TransformerConfig(config), input_dim=80).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    sizes = {"hidden_size": 96, "intermediate_size": 192}
    ours = AudioAlbert(
        model_config("saat_qk", ({"audio": {"delta": 0, "stack": 1}, "transformer": sizes}, "test"))
    ).eval()
    ours.load_state_dict(from_s3prl(theirs.state_dict()))
    lengths = [57, 31]
    x = torch.randn(2, 57, 80)
    mask = (torch.arange(57) < torch.tensor(lengths)[:, None]).float()
    with torch.no_grad():
        expected = theirs(x, position_encoding(57, 96).expand(2, -1, -1), mask)
        found = ours(x, torch.tensor(lengths))
    assert len(found) == len(expected) == 7
    for mine, their in zip(found, expected, strict=True):
        for row, n in enumerate(lengths):
            torch.testing.assert_close(mine[row, :n], their[row, :n], atol=1e-4, rtol=0)


def test_positions_equal_s3prls():
    torch.testing.assert_close(sinusoidal_positions(100, 48).float(), position_encoding(100, 48), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_alone_equals_in_a_batch_and_padding_is_zero(name, small):
    model = encoder(name, small, torch.float64)
    lengths = [40, 1, 17, 39, 97, 2]  # 97: windows, where the variant has a limit
    x = batch(lengths, dtype=torch.float64)
    with torch.no_grad():
        together = model(x, torch.tensor(lengths))
        for row, n in enumerate(lengths):
            alone = model(x[row : row + 1, :n], torch.tensor([n]))
            for state, own in zip(together, alone, strict=True):
                torch.testing.assert_close(state[row, :n], own[0], atol=1e-9, rtol=0)
                assert (state[row, n:] == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_left_out_is_padding_computed(name, small, monkeypatch):
    """States and gradients; and fewer operations."""
    model = encoder(name, small, torch.float64)
    x, lengths = batch([40, 1, 17, 2], dtype=torch.float64), torch.tensor([40, 1, 17, 2])
    found, operations = [], []
    for worth in (1.0, 0.0):
        monkeypatch.setattr("saat.upstream.encoder.WORTH_PACKING", worth)
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            states = model(x, lengths)
            sum((i + 1) * state.square().sum() for i, state in enumerate(states)).backward()
        operations.append(counter.get_total_flops())
        found.append([*states, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert operations[0] < 0.8 * operations[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_number_of_states_in_train_and_eval(name, small):
    model = encoder(name, small)
    x, lengths = batch([30, 20]), torch.tensor([30, 20])
    assert len(model(x, lengths)) == len(model.train()(x, lengths)) == 4


@pytest.mark.parametrize("length", [41, 59, 60, 61, 100, 3 * 40 + 7])
def test_window_starts_cover_everything(length):
    starts = window_starts(length, 40)
    assert starts[0] == 0 and starts[-1] == length - 40
    assert all(0 < b - a <= 20 for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("name", LIMITED)
def test_windows_equal_the_formula(name, small):
    model = encoder(name, small, torch.float64)
    n, size = 3 * 40 + 7, 40
    x = batch([n, 25], dtype=torch.float64)
    with torch.no_grad():
        found = model(x, torch.tensor([n, 25]))
        expected = [torch.zeros(n, 48, dtype=torch.float64) for _ in found]
        total = torch.zeros(n, dtype=torch.float64)
        for start in [0, 20, 40, 60, 80, 87]:
            weight = torch.tensor([min(i + 0.5, size - i - 0.5) for i in range(size)]).double()
            states = model(x[:1, start : start + size], torch.tensor([size]))
            total[start : start + size] += weight
            for sum_, state in zip(expected, states, strict=True):
                sum_[start : start + size] += weight[:, None] * state[0]
        plain = model(x[1:, :25], torch.tensor([25]))
    for mine, sum_, short in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(mine[0], sum_ / total[:, None], atol=1e-9, rtol=0)
        torch.testing.assert_close(mine[1, :25], short[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LIMITED)
def test_seams_are_no_rougher_than_a_window_is_inside(name, small):
    model = encoder(name, small, std=0.05)
    n, size = 3 * 40 + 7, 40
    x = torch.sin(torch.linspace(0, 3, n)[:, None] + torch.linspace(0, 6, 480))[None]  # smooth
    with torch.no_grad():
        blended = model(x, torch.tensor([n]))
        windows = [model(x[:, s : s + size], torch.tensor([size])) for s in window_starts(n, size)]
    for i, state in enumerate(blended):
        inside = max(float((w[i][0, 1:] - w[i][0, :-1]).norm(dim=-1).max()) for w in windows)
        # Cutting from window to window instead of blending makes jumps 2.7 to 3 times as large as `inside` here.
        assert float((state[0, 1:] - state[0, :-1]).norm(dim=-1).max()) <= inside * (1 + 1e-5)


@pytest.mark.parametrize("name", LIMITED)
def test_windows_pass_gradients(name, small):
    model = encoder(name, small)
    x = batch([90]).requires_grad_()
    sum(state.sum() for state in model(x, torch.tensor([90]))).backward()
    assert x.grad.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_fade_is_symmetric_and_positive():
    for size in (1, 2, 5, 40):
        weight = fade(size)
        assert (weight > 0).all() and torch.equal(weight, weight.flip(0))
    assert Windows(torch.tensor([3, 10]), 4).places == [(0, 0, 3), (1, 0, 4), (1, 2, 4), (1, 4, 4), (1, 6, 4)]


@pytest.mark.parametrize("name", VARIANTS)
def test_layers_of_their_own(name, small):
    own = {"transformer": small["transformer"] | {"share_layers": False}}
    model, shared = encoder(name, own, torch.float64), encoder(name, small, torch.float64)
    assert len(model.layers()) == 3 and len({id(layer) for layer in model.layers()}) == 3
    assert len({id(layer) for layer in shared.layers()}) == 1
    x, lengths = batch([30, 90], dtype=torch.float64), torch.tensor([30, 90])
    with torch.no_grad():
        assert not torch.equal(model(x, lengths)[-1], shared(x, lengths)[-1])
        for layer in model.layer:  # with equal weights, it is the shared model
            layer.load_state_dict(shared.layer.state_dict())
        model.input.load_state_dict(shared.input.state_dict())
        for mine, expected in zip(model(x, lengths), shared(x, lengths), strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_recomputing_layers_changes_no_gradient(name, small):
    """Dropout and the vectors of LSH included: in training, from the same seeds."""
    overrides = {"transformer": {**small["transformer"], "attention_probs_dropout_prob": 0.1}}
    model = encoder(name, overrides).train()
    x, lengths = batch([40, 17]).nan_to_num(0), torch.tensor([40, 17])
    found = []
    for model.recompute in (False, True):
        model.zero_grad()
        torch.manual_seed(4)
        states = model(x, lengths, torch.tensor([1, 2]))
        states[-1].square().sum().backward()
        found.append([states[-1].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
