"""The facts of SPEC section 2.1, each by test."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from saat.upstream.attention import REGISTRY, variant
from saat.upstream.attention.lsh import LSH, among_largest, among_largest_by_topk
from saat.upstream.config import TransformerConfig

NAMES = [name for name, entry in REGISTRY.items() if entry.attention and issubclass(entry.attention, LSH)]
D = 8


def lsh(name: str, dtype=torch.float64, heads: int = 3, **config) -> LSH:
    entry = variant(name)
    torch.manual_seed(0)
    transformer = TransformerConfig(hidden_size=heads * D, num_attention_heads=heads)
    module = entry.attention(transformer, entry.config(**config))
    torch.nn.init.normal_(module.query.weight, std=0.5)
    return module.to(dtype).eval()


def vectors_of(module: LSH, size: int) -> Tensor:
    """(1, A, size, n_hashes, D + extra), as in eval."""
    return module.prepare(torch.tensor([size]), size, module.vectors)


def queries(B: int = 2, T: int = 60, heads: int = 3, dtype=torch.float64, seed: int = 5) -> Tensor:
    return torch.randn(B, heads, T, D, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def transformed(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(x), Q(x) and M (B, A, 1, 1)."""
    largest = x.norm(dim=-1).amax(-1)[..., None, None]
    return *lsh(name).transform(x, largest), largest


def test_five_variants_hash():
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", ["saat_sign_alsh", "saat_xbox", "saat_qnf_xbox", "saat_simple_alsh"])
def test_transformed_products_are_exact_multiples_of_the_dot_product(name):
    x = queries()
    keys, asked, M = transformed(name, x)
    lam = M / x.norm(dim=-1, keepdim=True)  # of each query
    multiple = {
        "saat_sign_alsh": (0.75 / M) ** 2,
        "saat_xbox": torch.ones_like(M),
        "saat_qnf_xbox": lam,
        "saat_simple_alsh": 1 / M**2,
    }[name]
    expected = multiple * (x @ x.transpose(-1, -2))
    torch.testing.assert_close(asked @ keys.transpose(-1, -2), expected, atol=1e-12, rtol=1e-10)


def test_norms_of_the_transformed_keys():
    x = queries()
    keys, asked, M = transformed("saat_xbox", x)
    torch.testing.assert_close(keys.norm(dim=-1), M[..., 0].expand(-1, -1, 60))
    keys, asked, M = transformed("saat_qnf_xbox", x)
    torch.testing.assert_close(keys.norm(dim=-1), M[..., 0].expand(-1, -1, 60))
    torch.testing.assert_close(asked.norm(dim=-1), M[..., 0].expand(-1, -1, 60))
    for name in ("saat_simple_lsh", "saat_simple_alsh"):
        for side in transformed(name, x)[:2]:
            torch.testing.assert_close(side.norm(dim=-1), torch.ones(2, 3, 60).double())
    keys, _, M = transformed("saat_sign_alsh", x)
    norm = (x / M * 0.75).norm(dim=-1)
    torch.testing.assert_close(keys.square().sum(-1), 2 / 4 + norm ** (2 ** (2 + 1)))


@pytest.mark.parametrize("name", NAMES)
def test_cosine_is_monotone_in_the_dot_product_except_for_simple_lsh(name):
    x = queries()
    keys, asked, _ = transformed(name, x)
    if name == "saat_sign_alsh":  # up to norm(P): divide it out
        keys = keys / keys.norm(dim=-1, keepdim=True) * (2 / 4 + (keys[..., :D].norm(dim=-1, keepdim=True)) ** 8).sqrt()
        cosine = torch.nn.functional.normalize(asked, dim=-1) @ keys.transpose(-1, -2)
    else:
        cosine = torch.nn.functional.cosine_similarity(asked[..., :, None, :], keys[..., None, :, :], dim=-1)
    order = (x @ x.transpose(-1, -2)).argsort(-1)
    rising = cosine.gather(-1, order).diff(dim=-1) >= -1e-12
    assert bool(rising.all()) == (name != "saat_simple_lsh")


@pytest.mark.parametrize("n_hashes", [1, 4])
def test_xbox_and_qnf_pick_the_same_keys_up_to_rounding_ties(n_hashes):
    x, lengths = queries(), torch.tensor([60, 45])
    one, other = lsh("saat_xbox", n_hashes=n_hashes), lsh("saat_qnf_xbox", n_hashes=n_hashes)
    vectors = vectors_of(one, 60)
    assert torch.equal(vectors, vectors_of(other, 60))
    assert torch.equal(*[module.select_keys(x, lengths, vectors) for module in (one, other)])


def brute_force(module: LSH, x: Tensor, n: int, vectors: Tensor) -> Tensor:
    """(T, T) hash products of one head of one utterance, token by token, float64."""
    x, vectors = x[:n].double(), vectors.double()
    M = max(float(v.norm()) for v in x)
    P, Q = module.transform(x, torch.tensor(M).double().view(1, 1))
    out = torch.empty(n, n).double()
    for i in range(n):
        for j in range(n):
            out[i, j] = sum(float(a @ Q[i]) * float(a @ P[j]) for a in vectors[i])
    return out


@pytest.mark.parametrize("n_hashes", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_selected_keys_equal_brute_force_where_scores_are_apart(name, n_hashes):
    module = lsh(name, dtype=torch.float32, n_hashes=n_hashes, num_keys=5)
    x, lengths = queries(2, 24, dtype=torch.float32), torch.tensor([24, 17])
    vectors = vectors_of(module, 24)
    chosen = module.select_keys(x, lengths, vectors)
    compared = 0
    for b, n in enumerate(lengths.tolist()):
        for head in range(3):
            products = brute_force(module, x[b, head], n, vectors[0, head])
            top = products.sort(-1, descending=True)
            for i in range(n):
                assert int(chosen[b, head, i].sum()) == min(5, n)
                scale = float(top.values[i].abs().max())
                if top.values[i, 4] - top.values[i, 5] > 1e-5 * max(1.0, scale):
                    compared += 1
                    assert set(chosen[b, head, i].nonzero()[:, 0].tolist()) == set(top.indices[i, :5].tolist())
    assert compared > 100


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 80])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_selects_exactly_min_k_n_keys(name, n):
    module = lsh(name)
    hidden = torch.randn(2, 80, 24, dtype=torch.float64)
    with torch.no_grad():
        weights = module.weights(hidden, torch.tensor([80, n]))
    assert ((weights[1, :, :n] > 0).sum(-1) == min(32, n)).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_through_hashing(name):
    module = lsh(name)
    x = queries().requires_grad_()
    assert not module.hash_products(x, torch.tensor([60, 60]), vectors_of(module, 60)).requires_grad
    hidden = torch.randn(1, 50, 24, dtype=torch.float64)
    module.query.zero_grad()
    module(hidden, torch.tensor([50])).sum().backward()
    assert module.query.weight.grad.abs().max() > 0 and not module.vectors.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_fresh_vectors_in_training_seeded_ones_in_eval(name):
    module = lsh(name)
    assert torch.equal(vectors_of(module, 700)[:, :, 500:], vectors_of(module, 200))
    module.train()
    assert not torch.equal(vectors_of(module, 9), vectors_of(module, 9))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_in_training_are_a_function_of_the_utterances_seed_and_length(name):
    """Not of its neighbours, nor of what it is padded to; so a batch may be cut and spread over processes."""
    module = lsh(name).train()
    x = queries(3, 60).transpose(1, 2).flatten(2)  # (3, 60, H)
    lengths, seeds = torch.tensor([60, 41, 41]), torch.tensor([7, 8, 9])
    together = module.prepare(lengths, 60, x, seeds)
    alone = module.prepare(lengths[1:2], 41, x, seeds[1:2])
    assert torch.equal(together[1:2, :, :41], alone) and not together[1, :, 41:].any()
    assert not torch.equal(together[1], together[2])
    assert abs(float(together[0].mean())) < 0.1 and abs(float(together[0].std()) - 1) < 0.1
    torch.testing.assert_close(module(x, lengths, together)[1:2, :41], module(x[1:2, :41], lengths[1:2], alone))


def test_deterministic_across_processes():
    program = (
        "import torch\n"
        "from saat.upstream.attention import variant\n"
        "from saat.upstream.config import TransformerConfig\n"
        "v = variant('saat_xbox')\n"
        "print(v.attention(TransformerConfig(hidden_size=24, num_attention_heads=3), v.config()).vectors.sum().item())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()[-1]
        for _ in range(2)
    }
    entry = variant("saat_xbox")
    here = (
        entry.attention(TransformerConfig(hidden_size=24, num_attention_heads=3), entry.config()).vectors.sum().item()
    )
    assert runs == {str(here)}


@pytest.mark.parametrize("name", NAMES)
def test_float32_alone_equals_in_a_batch_where_no_near_tie_is_involved(name):
    module = lsh(name, dtype=torch.float32)
    lengths = torch.tensor([60, 41])
    hidden = torch.randn(2, 60, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together, alone = module(hidden, lengths), module(hidden[1:, :41], lengths[1:])
        q = module.split(module.query(hidden))
        top = module.hash_products(q, lengths, vectors_of(module, 60))[1, :, :41, :41].topk(33, dim=-1).values
        apart = top[..., 31] - top[..., 32] > 1e-5 * top.abs().amax(-1)  # (A, 41)
    same = (together[1, :41] - alone[0]).unflatten(-1, (3, D)).abs().amax(-1).T <= 1e-5
    assert apart.float().mean() > 0.9 and bool(same[apart].all())


def test_more_hashes_recall_more_of_the_true_top_keys():
    x, lengths = queries(2, 200), torch.tensor([200, 200])
    true = among_largest(x @ x.transpose(-1, -2), 32)
    recalls = []
    for n_hashes in (1, 4, 16, 64):
        module = lsh("saat_xbox", n_hashes=n_hashes)
        found = module.select_keys(x, lengths, vectors_of(module, 200))
        recalls.append(found[true].float().mean().item())
    assert recalls == sorted(recalls) and recalls[0] < 0.35 < recalls[-1]
    assert 32 / 200 < recalls[0]  # hardly better than chance


def test_float16_hashing_is_an_option():
    module = lsh("saat_xbox", dtype=torch.float32, hash_dtype="float16")
    x = queries(dtype=torch.float32)
    products = module.hash_products(x, torch.tensor([60, 60]), vectors_of(module, 60))
    assert products.dtype == torch.float16 and products.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_among_largest_is_its_definition(dtype):
    """Few and many, with ties at and away from the boundary, -inf, fewer finite ones than asked for, and NaN."""
    scores = torch.randn(3, 4, 50, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[0, 0] = scores[0, 0].round()  # ties
    scores[0, 1] = 0
    scores[1, :, :, 40:] = float("-inf")
    scores[2, :, :, 9:] = float("-inf")
    for count in (1, 2, 32, 69, 70, 100):
        chosen, expected = among_largest(scores, count), among_largest_by_topk(scores, count)
        assert torch.equal(chosen.sum(-1), (scores > float("-inf")).sum(-1).clamp_max(count))
        assert torch.equal(chosen, expected)
    scores[2, 2, 5, 3] = float("nan")
    assert torch.equal(among_largest(scores, 5).sum(-1)[2, 2, 4:6], among_largest_by_topk(scores, 5).sum(-1)[2, 2, 4:6])
