"""`saat init-from`: R is the mean attention map, the rest the source's; what cannot be averaged is said."""

import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from s3prl.nn import S3PRLUpstream

from saat.analysis.heads import globalness
from saat.analysis.init_from import init_from, logits
from saat.analysis.mean_maps import by_distance
from saat.cli import main
from saat.errors import SaatError
from saat.pretrain.cli import pretrain
from saat.pretrain.model import new_model
from saat.upstream import checkpoint
from saat.upstream.audio import read_audio
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert, sinusoidal_positions
from saat.upstream.features import Features

L, A, LAYERS, STRIDE = 12, 3, 2, 480
SMOOTHING = 0.01
TINY = {
    "audio": {"n_mels": 10},
    "transformer": {
        "hidden_size": 12,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": A,
        "intermediate_size": 16,
        "max_length": L,
    },
    "task": {"sequence_length": 3 * L},
}


@pytest.fixture(autouse=True)
def tiny(one_thread, tmp_path, monkeypatch):
    monkeypatch.setenv("SAAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Six utterances: two shorter than L tokens, of the others one has three crops and one a single sample too few."""
    rng = np.random.default_rng(0)
    lengths = {"a": L, "b": 2 * L + 5, "c": 3 * L, "d": L - 1, "e": 1}
    samples = {name: tokens * STRIDE for name, tokens in lengths.items()} | {"f": 2 * L * STRIDE - 1}
    (tmp_path / "corpus").mkdir()
    for name, count in samples.items():
        soundfile.write(tmp_path / "corpus" / f"{name}.flac", 0.1 * rng.standard_normal(count), 16000)
    return tmp_path / "corpus"


CROPS = {"a": [0], "b": [0, 1], "c": [0, 1, 2], "f": [0]}  # of L tokens, one after the other


@pytest.fixture
def source(tmp_path):
    """Makes a checkpoint whose heads' maps are far from alike."""

    def make(name="saat_qk", sharp=3.0, **transformer) -> Path:
        config = model_config(name, ({**TINY, "transformer": TINY["transformer"] | transformer}, "test"))
        model = new_model(config, seed=3)
        torch.manual_seed(4)
        with torch.no_grad():
            for weight_name, value in model.Transformer.named_parameters():
                if weight_name.endswith(("query.weight", "key.weight")):
                    value.copy_(sharp * torch.randn_like(value) / math.sqrt(len(value)))
        states = {"Transformer": model.Transformer.state_dict(), "SpecHead": model.SpecHead.state_dict()}
        path = tmp_path / f"{name}.ckpt"
        checkpoint.save(path, {**states, "Upstream_Config": config.to_dict(), "Step": 7})
        return path

    return make


def maps_of(path: Path, corpus: Path, crops=CROPS) -> np.ndarray:
    """(crops, layers, A, L, L), from `weights()` alone, all crops in one padded batch of longer ones."""
    states = checkpoint.load(path)
    config = checkpoint.check_model(states, "test")
    encoder = AudioAlbert(config).eval()
    encoder.load_state_dict(states["Transformer"])
    size = L * STRIDE
    wavs = [read_audio(corpus / f"{u}.flac", k * size, size) for u, ks in crops.items() for k in ks]
    with torch.no_grad():
        features, lengths = Features(config.audio)([*wavs, torch.zeros(size + 3 * STRIDE)])
        states = encoder(features, lengths)
        layers = zip(encoder.layers(), states, strict=False)
        maps = [layer.attention.weights(state, lengths)[:-1, :, :L, :L] for layer, state in layers]
    return torch.stack(maps, 1).double().numpy()


def smoothed(maps) -> torch.Tensor:
    return (1 - SMOOTHING) * torch.as_tensor(maps) + SMOOTHING / L


def naive_by_distance(mean: np.ndarray) -> np.ndarray:
    found = np.zeros_like(mean)
    for i in range(L):
        for j in range(L):
            cells = [mean[..., a, b] for a in range(L) for b in range(L) if b - a == j - i]
            found[..., i, j] = sum(cells) / len(cells)
        found[..., i, :] /= found[..., i, :].sum(-1, keepdims=True)
    return found


def R(path: Path, name="layer.attention.R") -> torch.Tensor:
    return checkpoint.load(path)["Transformer"][name].double()


@pytest.mark.parametrize("name", ["saat_qk", "saat_q"])
@pytest.mark.parametrize(("layer", "form"), [(None, "position"), (2, "position"), (None, "relative"), (1, "relative")])
def test_softmax_of_R_is_the_mean(source, corpus, tmp_path, name, layer, form):
    path = source(name)
    maps = maps_of(path, corpus)
    assert maps.shape == (7, LAYERS, A, L, L) and maps.std(0).max() > 0.05  # crops, and thus the mean, differ
    mean = maps.mean(0)
    mean = mean.mean(0) if layer is None else mean[layer - 1]
    if form == "relative":
        mean = naive_by_distance(mean)
    out = init_from(path, [corpus], tmp_path / "ours.ckpt", layer=layer, form=form)
    # Sharp heads enlarge what rounding does in another batch.
    torch.testing.assert_close(R(out).softmax(-1), smoothed(mean), atol=5e-6, rtol=1e-4)


def test_a_map_that_is_known(source, corpus, tmp_path):
    """A model deaf to the audio: the first layer's map is that of the positions, by the formula."""
    path = source()
    states = checkpoint.load(path)
    weights = states["Transformer"]
    weights["input.projection.weight"].zero_()
    checkpoint.save(path, states)
    x = sinusoidal_positions(L, 12).numpy()
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    q, k = (x @ weights[f"layer.attention.{part}.weight"].double().numpy().T for part in ("query", "key"))
    scores = np.stack([q[:, 4 * h : 4 * h + 4] @ k[:, 4 * h : 4 * h + 4].T / 2 for h in range(A)])
    known = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    out = init_from(path, [corpus], tmp_path / "ours.ckpt", layer=1)
    torch.testing.assert_close(R(out).softmax(-1), smoothed(known), atol=1e-5, rtol=1e-4)


def test_by_distance_of_a_shift_is_that_shift():
    shift = torch.eye(L).roll(1, 1).double()
    shift[-1] = torch.eye(L)[-1]
    found = by_distance(shift[None])[0]
    assert (found.argmax(-1) == (torch.arange(L) + 1).clamp_max(L - 1)).all() and (
        found[:-1].max(-1).values > 0.9
    ).all()
    anything = torch.rand(2, A, L, L).double().softmax(-1)
    torch.testing.assert_close(by_distance(anything), torch.from_numpy(naive_by_distance(anything.numpy())))


def test_logits():
    """Keys that are never seen included."""
    maps = torch.stack([torch.eye(L), torch.rand(L, L).softmax(-1)]).double()
    found = logits(maps, SMOOTHING).float().softmax(-1)
    torch.testing.assert_close(found, smoothed(maps).float(), atol=1e-7, rtol=1e-6)


def test_entropy():
    maps = torch.stack([torch.eye(L), torch.full((L, L), 1 / L)])
    torch.testing.assert_close(globalness(maps), torch.tensor([0.0, math.log(L)]))


def test_all_else_comes_from_the_source(source, corpus, tmp_path):
    path = source()
    before, after = checkpoint.load(path), checkpoint.load(init_from(path, [corpus], tmp_path / "ours.ckpt"))
    assert after["Step"] == 0 and "saat_qk" in after["Made_From"] and "7 crops" in after["Made_From"]
    assert after["Upstream_Config"]["upstream"] == "saat_ours"
    for key in ("audio", "transformer", "task"):
        assert after["Upstream_Config"][key] == before["Upstream_Config"][key]
    dropped = {f"layer.attention.{part}" for part in ("query.weight", "query.bias", "key.weight", "key.bias")}
    assert before["Transformer"].keys() - dropped == after["Transformer"].keys() - {"layer.attention.R"}
    for part in ("Transformer", "SpecHead"):
        for name in before[part].keys() & after[part].keys():
            assert torch.equal(before[part][name], after[part][name]), name


def test_fresh_is_a_new_pre_training_but_for_R(source, corpus, tmp_path):
    path = source()
    fresh = checkpoint.load(init_from(path, [corpus], tmp_path / "fresh.ckpt", fresh=True, seed=11))
    usual = init_from(path, [corpus], tmp_path / "ours.ckpt")
    config = checkpoint.check_model(fresh, "test")
    model = new_model(config, seed=11)
    assert torch.equal(R(usual).float(), fresh["Transformer"].pop("layer.attention.R"))
    expected = model.Transformer.state_dict()
    assert not torch.equal(R(usual).float(), expected.pop("layer.attention.R"))
    for part, weights in (("Transformer", expected), ("SpecHead", model.SpecHead.state_dict())):
        assert weights.keys() == fresh[part].keys()
        assert all(torch.equal(weights[name], fresh[part][name]) for name in weights)


def test_layers_with_weights_of_their_own(source, corpus, tmp_path):
    path = source(share_layers=False)
    mean = maps_of(path, corpus).mean(0)
    out = init_from(path, [corpus], tmp_path / "ours.ckpt")
    for layer in range(LAYERS):
        found = R(out, f"layer.{layer}.attention.R").softmax(-1)
        torch.testing.assert_close(found, smoothed(mean[layer]), atol=1e-6, rtol=1e-5)
    out = init_from(path, [corpus], tmp_path / "ours.ckpt", layer=2, force=True)
    torch.testing.assert_close(R(out, "layer.0.attention.R"), R(out, "layer.1.attention.R"))


def test_which_utterances(source, corpus, tmp_path, capsys):
    """Listed ones alone; a broken file is named; a count takes the same ones wherever the corpus lies."""
    path = source()
    (tmp_path / "train_split.txt").write_text("c\nd\n")
    out = init_from(path, [corpus], tmp_path / "listed.ckpt", splits=tmp_path)
    expected = maps_of(path, corpus, {"c": [0, 1, 2]}).mean((0, 1))
    torch.testing.assert_close(R(out).softmax(-1), smoothed(expected), atol=1e-6, rtol=1e-5)
    said = capsys.readouterr()
    assert "averaged 3 crops of 1 utterances" in said.out and "left out 1 of 2 utterances: shorter than 12" in said.err
    one = init_from(path, [corpus], tmp_path / "one.ckpt", utterances=1)
    corpus.rename(tmp_path / "elsewhere")
    other = init_from(path, [tmp_path / "elsewhere"], tmp_path / "other.ckpt", utterances=1)
    assert torch.equal(R(one), R(other))
    data = (tmp_path / "elsewhere" / "c.flac").read_bytes()
    (tmp_path / "elsewhere" / "c.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(SaatError, match="none of 1 utterances can be read"):
        init_from(path, [tmp_path / "elsewhere"], tmp_path / "x.ckpt", splits=tmp_path)
    assert "left out: " in capsys.readouterr().err


def test_another_length(source, corpus, tmp_path):
    out = init_from(source(), [corpus], tmp_path / "ours.ckpt", length=8)
    assert R(out).shape == (A, 8, 8) and checkpoint.load(out)["Upstream_Config"]["transformer"]["max_length"] == 8
    message = r"no utterance has 99 tokens \(2.97 s\), the longest of 6 has 36 \(1.08 s\): pass a smaller --length"
    with pytest.raises(SaatError, match=message):
        init_from(source(), [corpus], tmp_path / "x.ckpt", length=99)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("saat_ours", "an R already: run_pretrain.py -u saat_ours -i .* starts"),
        ("saat_syn_random", "an R already: run_pretrain.py -u saat_syn_random -i"),
        ("saat_sparse_fixed", "the variant limits what a query sees"),
        ("saat_xbox", "the variant limits what a query sees"),
        ("saat_syn_dense", "its weights come from the query alone"),
    ],
)
def test_other_variants(source, corpus, tmp_path, name, why):
    with pytest.raises(SaatError, match=f"is a checkpoint of {name}: .*{why}.*init-from takes a saat_qk or saat_q"):
        init_from(source(name), [corpus], tmp_path / "x.ckpt")


def test_mel(corpus, tmp_path):
    states = {"Transformer": {}, "Upstream_Config": model_config("saat_mel").to_dict()}
    checkpoint.save(tmp_path / "mel.ckpt", states)
    with pytest.raises(SaatError, match="checkpoint of saat_mel: it has no attention"):
        init_from(tmp_path / "mel.ckpt", [corpus], tmp_path / "x.ckpt")


def test_other_errors(source, corpus, tmp_path):
    path, out = source(), tmp_path / "ours.ckpt"
    for options, message in [
        ({"layer": 3}, "--layer 3: .* has layers 1 to 2"),
        ({"layer": 0}, "--layer 0: .* has layers 1 to 2"),
        ({"form": "relativ"}, "did you mean 'relative'"),
        ({"utterances": 0}, "must be at least 1"),
        ({"length": 0}, "must be at least 1"),
    ]:
        with pytest.raises(SaatError, match=message):
            init_from(path, [corpus], out, **options)
    assert not out.exists()
    init_from(path, [corpus], out)
    before = out.read_bytes()
    with pytest.raises(SaatError, match="exists already: pass --force, or another --out"):
        init_from(path, [corpus], out)
    with pytest.raises(SaatError, match="exists already: name a file in it"):
        init_from(path, [corpus], tmp_path, force=True)
    assert out.read_bytes() == before
    states = checkpoint.load(path)
    states["Transformer"]["layer.attention.key.weight"][0, 0] = math.nan
    checkpoint.save(path, states)
    with pytest.raises(SaatError, match="attention maps are not finite"):
        init_from(path, [corpus], out, force=True)
    assert out.read_bytes() == before


def test_the_docs_commands(source, corpus, tmp_path, monkeypatch, capsys):
    """In docs/pretraining.md, in the order written; then as an upstream."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    section = page.split("## Starting from a checkpoint")[1].split("\n## ")[0]
    commands = [shlex.split(line) for line in section.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    assert [command[:2] for command in commands] == [["saat", "init-from"], ["python", "run_pretrain.py"]]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "result/pretrain/qk").mkdir(parents=True)
    source().rename(tmp_path / "result/pretrain/qk/states-2000.ckpt")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train_split.txt").write_text("a\nb\nc")
    places = {"/data/LibriSpeech/train-clean-100": str(corpus), "/data/splits": str(tmp_path / "splits")}
    init, again = [[places.get(word, word) for word in command] for command in commands]
    assert main(init[1:]) == 0
    out = Path(init[init.index("--out") + 1])
    assert "averaged 6 crops of 3 utterances" in capsys.readouterr().out
    sizes = ",,".join(f"config.model.transformer.{k}={v}" for k, v in TINY["transformer"].items())
    few = "config.runner.total_steps=2,,config.pretrain_expert.datarc.held_out=1,,config.model.audio.n_mels=10"
    trained = pretrain([*again[2:], "-o", f"{few},,{sizes}"], progress=False)
    moved = (R(trained) - R(out)).abs().max()
    assert 0 < moved < 0.01
    for path in (out, trained):
        model = S3PRLUpstream("saat_ours_local", path_or_url=str(path)).eval()
        with torch.no_grad():
            hidden, lengths = model(torch.randn(2, 16000), torch.tensor([16000, 7000]))
        assert len(hidden) == LAYERS + 1 and lengths[0].tolist() == [34, 15] and hidden[-1].isfinite().all()


def test_the_command_says_what_is_wrong(capsys):
    assert main(["init-from", "nowhere.ckpt", "--corpus", "here", "--out", "never.ckpt"]) == 2
    assert "no checkpoint at nowhere.ckpt" in capsys.readouterr().err and "never.ckpt" not in sys.argv
