"""The endless sequence of samples: every step's batch is a function of the seed and the step."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from saat.errors import SaatError
from saat.pretrain.data import Crops, epoch_order, loader
from saat.pretrain.manifest import Corpus, load_corpus
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import load_recipe
from saat.upstream.audio import read_audio
from saat.upstream.config import model_config

from .conftest import TINY, same, speech_like, write_corpus


@pytest.fixture
def config():
    return model_config("saat_ours", (TINY["model"], "test"))


def fake_corpus(lengths: torch.Tensor) -> Corpus:
    names = [f"{i}.wav" for i in range(len(lengths))]
    return Corpus(names, lengths, names)


@pytest.mark.parametrize("count", [1, 3, 7, 8, 16, 50])
@pytest.mark.parametrize("total", [1, 4, 8, 20])
def test_an_epoch_takes_every_utterance_once(count, total):
    lengths = torch.randint(1000, 50000, (count,), generator=torch.Generator().manual_seed(0))
    orders = [epoch_order(lengths, total, 3, epoch) for epoch in range(4)]
    assert all(sorted(order.tolist()) == list(range(count)) for order in orders)
    if count > 8:
        assert not torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], epoch_order(lengths, total, 4, 0))
    assert torch.equal(orders[2], epoch_order(lengths, total, 3, 2))


def test_batches_have_similar_lengths_and_change_from_epoch_to_epoch():
    lengths = torch.randint(16000, 240000, (1000,), generator=torch.Generator().manual_seed(0))
    total, share, together = 16, [], []
    for epoch in range(3):
        order = epoch_order(lengths, total, 0, epoch)
        head = -epoch * len(lengths) % total
        batches = order[head : head + (len(order) - head) // total * total].view(-1, total)
        taken = lengths[batches]
        share.append(1 - float(taken.sum() / (taken.amax(1) * total).sum()))
        means = taken.double().mean(1)
        # Long and short batches follow one another in no order.
        assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(len(means)).double()]))[0, 1])) < 0.3
        together.append({frozenset(batch) for batch in batches.tolist()})
    assert max(share) < 0.08
    assert not together[0] & together[1]


def test_a_step_takes_the_same_samples_however_it_is_divided(config):
    corpus = fake_corpus(torch.randint(8000, 30000, (29,), generator=torch.Generator().manual_seed(1)))
    places = [[Crops(corpus, config, size, 8, 5).place(number) for number in range(120)] for size in (1, 2, 4, 8)]
    assert all(other == places[0] for other in places[1:])


def test_crops_lie_within_the_file_and_on_the_hop(config):
    corpus = fake_corpus(torch.tensor([480, 9599, 9600, 9601, 9760, 48000, 123456]))
    crops = Crops(corpus, config, 1, 1, 0)
    starts = set()
    for number in range(3000):
        utterance, start, samples = crops.place(number)
        length = int(corpus.samples[utterance])
        assert samples == min(9600, length) and 0 <= start <= length - samples and start % 160 == 0
        if utterance == 5:
            starts.add(start // 160)
    assert min(starts) < 5 and max(starts) > 235 and len(starts) > 150  # of 241 places


def test_workers_change_nothing(corpus, config):
    crops = Crops(load_corpus([corpus], 480), config, 3, 6, 2)
    alone = list(loader(crops, 0, 9, 0, False))
    assert all(same(list(a), list(b)) for a, b in zip(alone, loader(crops, 0, 9, 2, False), strict=True))
    # From the middle, as a resumed run would.
    assert all(same(list(a), list(b)) for a, b in zip(alone[5:], loader(crops, 5, 4, 2, False), strict=True))


def test_batch_is_what_the_files_hold(corpus, config):
    crops = Crops(load_corpus([corpus], 480), config, 4, 4, 2)
    batch = crops[3]
    assert batch.numbers.tolist() == [12, 13, 14, 15]
    for number, row, n in zip(batch.numbers.tolist(), batch.waveforms("cpu"), batch.samples.tolist(), strict=True):
        utterance, start, samples = crops.place(number)
        assert n == samples == len(row)
        assert torch.equal(row, read_audio(crops.corpus.paths[utterance])[start : start + samples])
    assert batch.lengths(config).tolist() == [-(-n // 480) for n in batch.samples.tolist()]


def test_second_pass_goes_on(corpus, config):
    passes = loader(Crops(load_corpus([corpus], 480), config, 4, 4, 2), 0, 2, 0, False)
    assert [batch.numbers[0].item() for _ in range(2) for batch in passes] == [0, 4, 8, 12]


def expert_on(folder, **datarc):
    values = {"corpus": [str(folder)], "train_batch_size": 5, "num_workers": 0, **datarc}
    return UpstreamPretrainExpert(values, {"upstream": "saat_qk", **TINY["model"]}, "cpu")


def test_files_that_turn_bad_are_named_once_and_left_out(tmp_path, capsys):
    folder = write_corpus(tmp_path / "corpus", 10)
    expert = expert_on(folder)
    expert.skipped_file = tmp_path / "skipped.txt"
    gone, cut, nan = sorted(folder.rglob("*.flac"))[:3]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 4])
    wav = speech_like(1.0, 1)
    wav[::50] = np.nan
    soundfile.write(tmp_path / "nan.wav", wav, 16000, subtype="FLOAT")
    shutil.move(tmp_path / "nan.wav", nan)  # soundfile goes by the contents
    expert.crops.corpus.samples[expert.crops.corpus.paths.index(str(nan))] = 16000
    numbers = []
    for batch in expert.get_train_dataloader(0, 8):
        loss, _ = expert(batch)
        assert bool(loss.isfinite())
        numbers += batch.numbers.tolist()
    expected = {5 * k + i for k in range(8) for i in range(5)}
    lost = expected - set(numbers)
    assert 8 <= len(lost) <= 12  # three of ten utterances, in four epochs (not every crop reaches the damage)
    said = capsys.readouterr().err
    for path in (gone, cut, nan):
        assert said.count(f"left out: {path}") == 1
        lines = (tmp_path / "skipped.txt").read_text().splitlines()
        assert sum(line.startswith(f"{path}: ") for line in lines) == 1


def test_strict_ends_the_run(tmp_path):
    folder = write_corpus(tmp_path / "corpus", 5)
    expert = expert_on(folder, strict=True)
    sorted(folder.rglob("*.flac"))[0].unlink()
    with pytest.raises(SaatError, match=r"0000.flac: cannot be read as audio.*\(strict\)"):
        for batch in expert.get_train_dataloader():
            expert(batch)


def test_a_corpus_that_vanishes_ends_the_run(tmp_path):
    folder = write_corpus(tmp_path / "corpus", 5)
    expert = expert_on(folder)
    shutil.rmtree(folder)
    with pytest.raises(SaatError, match="is the corpus still there"):
        expert(next(iter(expert.get_train_dataloader())))


def test_other_rates_give_the_length_the_header_promises(tmp_path, config):
    for i, rate in enumerate((8000, 11025, 22050, 44100, 48000)):
        soundfile.write(tmp_path / f"{i}.wav", speech_like(0.9 + 0.0137 * i, i, rate), rate)
    crops = Crops(load_corpus([tmp_path], 480), config, 5, 5, 0)
    for index in range(4):
        batch = crops[index]
        assert not batch.problems and len(batch.numbers) == 5


def librispeech_lengths(count: int) -> torch.Tensor:
    """Samples, distributed as those of 503 utterances of LibriSpeech train-clean-5, by their 21 vigintiles."""
    quantiles = [32480, 55024, 77056, 112144, 139424, 165480, 185552, 198840, 204672, 214872, 220080, 223920, 228496]
    quantiles += [233544, 238000, 241960, 245072, 248272, 252464, 257232, 273600]
    places = np.random.default_rng(0).random(count)
    return torch.from_numpy(np.interp(places, np.linspace(0, 1, 21), quantiles)).long()


@pytest.mark.parametrize(
    ("recipe", "total", "bound"), [("paper", 50, 0.03), ("paper", 200, 0.03), ("mini", 16, 0.01), ("demo", 16, 0.01)]
)
def test_padding_of_librispeech_is_bounded(recipe, total, bound):
    batch_size = load_recipe(recipe).datarc.train_batch_size
    config = model_config("saat_ours", (load_recipe(recipe).model, recipe))
    crops = Crops(fake_corpus(librispeech_lengths(28539)), config, batch_size, max(total, batch_size), 0)
    shares = [crops.padding_share(epoch) for epoch in range(3)]
    assert 0 < max(shares) < bound


@pytest.mark.parametrize(("count", "size", "total"), [(29, 4, 8), (3, 8, 8), (16, 4, 4), (1, 5, 10)])
def test_padding_share_is_that_of_the_batches(config, count, size, total):
    lengths = torch.randint(480, 9600, (count,), generator=torch.Generator().manual_seed(1))
    crops = Crops(fake_corpus(lengths), config, size, total, 5)
    for epoch in range(4):
        tokens = []
        for first in range(0, (epoch + 1) * count, size):
            if first >= epoch * count:
                tokens.append([-(-crops.place(number)[2] // 480) for number in range(first, first + size)])
        computed, real = sum(max(t) * len(t) for t in tokens), sum(map(sum, tokens))
        assert crops.padding_share(epoch) == pytest.approx(1 - real / computed if tokens else 0.0)
    assert Crops(fake_corpus(lengths), config, 1, total, 5).padding_share(0) == 0


@pytest.mark.parametrize("ending", ["flac", "wav", "ogg", "mp3"])
def test_a_part_of_a_file_is_that_part_of_the_whole(tmp_path, ending):
    if ending.upper() not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {ending}")
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, speech_like(6, 3), 16000)
    whole = read_audio(path)
    for start in range(0, 90000, 4321):
        assert torch.equal(read_audio(path, start, 5000), whole[start : start + 5000])
