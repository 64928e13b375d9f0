"""Something is learnt; the figure of it; the demo recipe; real speech where there is some."""

import pytest
import torch

from saat.errors import SaatError
from saat.pretrain import cli
from saat.pretrain.data import Batch
from saat.pretrain.figures import reconstruct, reconstruction_figure
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.upstream.audio import find_audio, read_audio

from .conftest import write_corpus


def losses(monkeypatch):
    """The loss of every step from now on."""
    kept = []
    real = UpstreamPretrainExpert.forward

    def forward(self, data: Batch, *args, **kwargs):
        loss, records = real(self, data, *args, **kwargs)
        kept.append(loss.item())
        return loss, records

    monkeypatch.setattr(UpstreamPretrainExpert, "forward", forward)
    return kept


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize("upstream", ["saat_ours", "saat_qk"])
def test_learning(run, tmp_path, monkeypatch, upstream, optimizer):
    corpus = write_corpus(tmp_path / "corpus", 20)
    kept = losses(monkeypatch)
    o = (
        f"config.runner.total_steps=60,,config.optimizer.name={optimizer},,config.optimizer.lr=1e-2,,"
        "config.runner.log_step=60,,config.pretrain_expert.datarc.train_batch_size=8,,"
        "config.model.transformer.hidden_size=48"
    )
    run(tmp_path / "exp", "--corpus", corpus, o=o, upstream=upstream)
    first, last = sum(kept[:5]) / 5, sum(kept[-10:]) / 10
    # Ours sees the neighbours from the start; the others first have to learn where they are.
    assert last < (0.8 if (upstream, optimizer) == ("saat_ours", "adamw") else 0.94) * first


def test_figure(run, tmp_path, corpus):
    path = run(tmp_path / "exp", o="config.runner.total_steps=2")
    wav = find_audio(corpus)[0]
    masked, predicted, true, chosen, config = reconstruct(path, read_audio(wav))
    assert masked.shape == predicted.shape == true.shape == (len(chosen), 10)
    assert torch.equal(masked[~chosen], true[~chosen]) and not masked[chosen].any() and chosen.any()
    assert bool(predicted.isfinite().all())
    image = reconstruction_figure(path, wav, tmp_path / "deep" / "figure.png")
    assert image.read_bytes()[:4] == b"\x89PNG" and image.stat().st_size > 10000
    (tmp_path / "file").write_text("")
    with pytest.raises(SaatError, match="cannot write"):
        reconstruction_figure(path, wav, tmp_path / "file" / "figure.png")


def test_figure_of_the_linear_spectrogram(run, tmp_path, corpus):
    path = run(tmp_path / "exp", o="config.runner.total_steps=1,,config.model.task.target=linear")
    assert reconstruction_figure(path, read_audio(find_audio(corpus)[0]), tmp_path / "figure.png").is_file()


def test_demo_recipe_makes_its_corpus(tmp_path, monkeypatch):
    """And trains on the training utterances alone."""
    import saat.demo.corpus

    def make_corpus(root=None, progress=True):
        folder = tmp_path / "demo"
        ids = sorted(path.stem for path in write_corpus(folder / "train", 10).rglob("*.flac"))
        (folder / "alignments").mkdir(exist_ok=True)
        (folder / "alignments" / "train_split.txt").write_text("\n".join(ids[:7]))
        return folder

    monkeypatch.setattr(saat.demo.corpus, "make_corpus", make_corpus)
    argv = ["-u", "saat_ours", "-c", "demo", "-p", str(tmp_path / "exp")]
    small = "config.pretrain_expert.datarc.train_batch_size=2,,config.model.transformer.hidden_size=24"
    states = torch.load(
        cli.pretrain([*argv, "-o", f"{small},,config.runner.total_steps=1"], progress=False), weights_only=True
    )
    assert states["Corpus"]["utterances"] == 7 and states["Config"]["pretrain_expert"]["datarc"]["corpus"] == []
    path = cli.pretrain([*argv, "-a", "-o", f"{small},,config.runner.total_steps=2"], progress=False)
    assert torch.load(path, weights_only=True)["Corpus"] == states["Corpus"]


def test_real_speech(run, tmp_path, librispeech_small, capsys):
    corpus, lists = librispeech_small / "train-clean-5", librispeech_small / "alignments"
    o = f"config.runner.total_steps=3,,config.pretrain_expert.datarc.splits={lists}"
    states = torch.load(run(tmp_path / "exp", "--corpus", corpus, o=o), weights_only=True)
    assert states["Corpus"]["utterances"] == len((lists / "train_split.txt").read_text().split())
    assert "skipped" not in capsys.readouterr().err
