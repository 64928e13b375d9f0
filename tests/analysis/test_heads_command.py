"""`saat heads`, the figures of heads and maps, and docs/heads.md as written."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from saat.analysis.heads import CATEGORIES, MEASURES
from saat.analysis.heads_figure import compare, divergence, initial_and_trained, mass_moved, patterns_figure
from saat.analysis.keys_figure import keys_figure, seen_keys
from saat.analysis.map_figures import categories_figure, embed, embedding_figure
from saat.analysis.maps import corpus_maps, load_model, some_utterances
from saat.cli import main
from saat.errors import SaatError
from saat.upstream.attention import REGISTRY
from saat.upstream.attention.patterns import normalise_rows

VARIANTS = [name for name, entry in REGISTRY.items() if entry.attention is not None]
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "heads.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def tiny_models(one_thread):
    """Everything here is tiny."""


@pytest.mark.parametrize("name", VARIANTS)
def test_table_of_any_variant(name, make_checkpoint, speech, tmp_path, capsys):
    ckpt, found = make_checkpoint(name), tmp_path / "heads.json"
    asked = ["heads", "-u", name, "-k", str(ckpt), "--corpus", str(speech), "--utterances", "3", "--json", str(found)]
    assert main(asked) == 0
    rows = json.loads(found.read_text())
    dependent = REGISTRY[name].input_dependent
    layers = [1, 2] if dependent else [0]
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, h) for layer in layers for h in range(1, 13)]
    for row in rows:
        assert row["category"] in CATEGORIES and 0 < row["agree"] <= 1 and 0 <= row["flat"] <= 1
        assert row["upstream"] == name and row["utterances"] == (3 if dependent else 0)
        assert set(MEASURES) < set(row)
    if name == "saat_ours":
        categories = [row["category"] for row in rows]
        assert categories == ["Diagonal"] * 5 + ["Increasing", "Decreasing"] + ["Sparse"] * 5
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ +(?:\d|all) +\d+ +-0\.\d{3} ", printed, re.M)) == len(rows)
    assert ("3 utterances" if dependent else "the same weights") in printed


def test_maps_are_those_of_the_true_tokens(make_checkpoint, speech):
    model = load_model(make_checkpoint("saat_qk"))
    files = some_utterances(speech, 6)
    sizes = [maps.shape for _, maps in corpus_maps(model, files)]
    # Longer than max_length: cut to it.
    assert sizes == [(2, 12, n, n) for n in (18, 21, 24, 24, 24, 24)]
    assert [file.stem[-1] for file, _ in corpus_maps(model, files, tokens=20)] == list("12345")
    for _, maps in corpus_maps(model, files, tokens=20):
        assert maps.shape == (2, 12, 20, 20)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 12, 20))


def test_broken_files_are_named_and_left_out(make_checkpoint, speech, capsys):
    model = load_model(make_checkpoint("saat_qk"))
    first, *rest = some_utterances(speech, 6)
    first.write_bytes(b"no audio")
    assert [file for file, _ in corpus_maps(model, [first, *rest])] == rest
    assert f"skipped: {first}" in capsys.readouterr().err
    with pytest.raises(SaatError, match="none of the 1 audio files can be read"):
        list(corpus_maps(model, [first]))


def test_layers_with_weights_of_their_own(make_checkpoint, capsys):
    ckpt = make_checkpoint("saat_ours", share_layers=False)
    assert main(["heads", "-u", "saat_ours", "-k", str(ckpt)]) == 0
    assert re.search(r"^ +2 +12 +-0", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-u", "saat_mel", "-k", "{ckpt}", "--corpus", "{speech}"], "no attention"),
        (["-u", "saat_kq", "-k", "{ckpt}", "--corpus", "{speech}"], "unknown upstream 'saat_kq'"),
        (["-u", "saat_q", "-k", "{ckpt}", "--corpus", "{speech}"], "a checkpoint of saat_qk"),
        (["-u", "saat_qk", "-k", "{ckpt}"], "--corpus FOLDER"),
        (["-u", "saat_qk", "-k", "{ckpt}", "--corpus", "{empty}"], "no audio"),
        (["-u", "saat_qk", "-k", "{ckpt}", "--corpus", "{speech}", "--utterances", "0"], "at least 1"),
        (["-u", "saat_qk", "-k", "{empty}/none.ckpt", "--corpus", "{speech}"], "no checkpoint at"),
        (["-u", "saat_qk", "--corpus", "{speech}"], "pass -k FILE"),
        (["-u", "saat_qk", "-k", "{ckpt}", "--corpus", "{speech}", "--out", "{ckpt}/x"], "cannot write"),
    ],
)
def test_what_cannot_be_analysed(arguments, message, make_checkpoint, speech, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"ckpt": make_checkpoint("saat_qk"), "speech": speech, "empty": tmp_path / "empty"}
    assert main(["heads", *(argument.format(**places) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_which_keys_are_seen(tmp_path):
    seen = {name: seen_keys(REGISTRY[name], 16) for name in VARIANTS}
    assert all(own[0][1].all() for name, own in seen.items() if name in ("saat_qk", "saat_syn_dense", "saat_ours"))
    (_, local), (_, far) = seen["saat_sparse_fixed"]
    assert local[5].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert far[5].nonzero().flatten().tolist() == [3, 7, 11, 15]
    assert all((own[0][1].sum(-1) == 2).all() for name, own in seen.items() if "lsh" in name or "xbox" in name)
    assert imread(keys_figure(tmp_path / "new" / "keys.png", length=16)).std() > 0.05
    with pytest.raises(SaatError, match="at least 8"):
        keys_figure(tmp_path / "keys.png", length=4)


def test_before_and_after(make_checkpoint, tmp_path):
    ckpt = make_checkpoint("saat_ours")
    numbers = patterns_figure(ckpt, tmp_path / "heads.png")
    assert all(len(values) == 12 for values in numbers.values())
    assert numbers["correlation"] == pytest.approx([1] * 12) and numbers["kl"] == pytest.approx([0] * 12, abs=1e-9)
    before, _ = initial_and_trained(ckpt)
    changed = compare(before, before.flip(-1))
    assert max(changed["correlation"]) < 0.5 and min(changed["kl"]) > 0.1
    with pytest.raises(SaatError, match="depend on the input|no fixed weights"):
        patterns_figure(make_checkpoint("saat_qk"), tmp_path / "none.png")


def test_divergence_by_hand():
    p = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]], dtype=torch.float64)
    q = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64)
    first = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert divergence(p, q)[0] == pytest.approx(float(first + torch.tensor(2.0).log()) / 2)
    assert divergence(q, p)[0] == float("inf") and mass_moved(p, q)[0] == pytest.approx((0.25 + 0.5) / 2)


@pytest.mark.parametrize("name", ["saat_qk", "saat_ours"])
def test_clearest_maps(name, make_checkpoint, speech, tmp_path):
    drawn = categories_figure(make_checkpoint(name), speech, tmp_path / "maps.png", utterances=2, examples=2)
    assert imread(drawn).std() > 0.05


def test_embedding(make_checkpoint, speech, tmp_path):
    ckpt = make_checkpoint("saat_qk")
    assert imread(embedding_figure(ckpt, [speech], tmp_path / "points.png", utterances=3, tokens=18)).std() > 0.05
    with pytest.raises(SaatError, match="fewer than two utterances"):
        embedding_figure(ckpt, [speech], tmp_path / "points.png", utterances=1, tokens=18)
    with pytest.raises(SaatError, match="same maps for every utterance"):
        embedding_figure(make_checkpoint("saat_ours"), [speech], tmp_path / "points.png")


def test_embedding_puts_like_maps_together_and_is_seeded():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 1, 400, generator=generator)
    flat = normalise_rows((kinds + 0.1 * torch.randn(3, 20, 400, generator=generator)).exp()).flatten(0, 1).numpy()
    points = torch.from_numpy(embed(flat)).reshape(3, 20, 2)
    assert points.equal(torch.from_numpy(embed(flat)).reshape(3, 20, 2))
    centres = points.mean(1)
    assert points.std(1).max() < torch.pdist(centres).min() / 3


def in_places(text: str, places: dict[str, str]) -> str:
    for named, place in places.items():
        text = text.replace(named, place)
    return text


def test_the_page(make_checkpoint, speech, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_checkpoint("saat_qk", "result/pretrain/qk/states-2000.ckpt")
    make_checkpoint("saat_ours", "result/pretrain/ours/states-2000.ckpt")
    places = {"/data/LibriSpeech/test-other": str(speech)}
    commands = re.findall(r"^    saat (heads .*)", (README + PAGE).replace("\\\n", ""), re.M)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(in_places(command, places))) == 0, capsys.readouterr().err
    assert {path.name for path in Path("result/heads").iterdir()} == {"maps.png", "heads.json"}
    title = capsys.readouterr().out.splitlines()[0].split()
    assert [row.split("|")[1].strip() for row in PAGE.splitlines() if row.startswith("| ")][1:] == title[2:]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    # The utterances here are shorter than what the figure takes by default.
    exec(compile(in_places(code, places).replace('"figure6.png"', '"figure6.png", tokens=18'), "heads.md", "exec"), {})
    assert all(Path(f"figure{i}.png").is_file() for i in (1, 2, 4, 6))
