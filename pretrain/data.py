"""Batches of random crops, each a function of its number: what the model sees at a step depends on nothing else.

The data is one endless sequence of samples: a permutation of the corpus for each epoch, one after the other. Sample
s is utterance s mod N of epoch s div N. A step takes the next `total_batch` samples; the parts it is computed in
(gradient accumulation) take the same samples in the same order, whatever their size.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from saat.pretrain.audio_cache import AudioCache
from saat.pretrain.draws import BITS, CROP, GROUPS, ORDER, draw, draws
from saat.pretrain.manifest import Corpus
from saat.upstream.audio import AudioError, read_audio
from saat.upstream.config import ModelConfig
from saat.upstream.features import num_tokens

STOPPING = (signal.SIGINT, signal.SIGTERM)
SIMILAR = 0.1  # lengths that differ by less than this share may be in one batch in any order


class Batch(NamedTuple):
    """A part of a step's samples, as audio. Samples whose file cannot be read are left out."""

    numbers: Tensor  # (B,), sample numbers
    audio: Tensor  # (B, S), 16 kHz, zero beyond each crop's end
    samples: Tensor  # (B,), samples of each crop
    problems: list[tuple[str, str]]  # file and message, for each that could not be read

    def lengths(self, config: ModelConfig) -> Tensor:
        """(B,), tokens of each crop."""
        return num_tokens(self.samples, config.audio.stride)

    def waveforms(self, device: torch.device | str) -> list[Tensor]:
        """B crops, each (samples,), on a device."""
        audio = self.audio.to(device, non_blocking=True)
        return [row[:n] for row, n in zip(audio, self.samples.tolist(), strict=True)]


def epoch_order(lengths: Tensor, total_batch: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch takes the utterances.

    The batches of the endless sequence lie at multiples of `total_batch`, so an epoch has a head that fills up the
    last epoch's batch, whole batches, and a tail. Each of these groups has utterances of similar length.

    Args:
        lengths: (N,), samples of what is taken of each utterance.

    Returns:
        (N,), a permutation.
    """
    count = len(lengths)
    key = torch.tensor([epoch])
    shuffled = draws(seed, ORDER, key, torch.arange(count))[0]
    by_length = (lengths * (1 + SIMILAR * shuffled.double() / 2**BITS)).argsort(stable=True)
    head = min(count, -epoch * count % total_batch)
    whole, tail = divmod(count - head, total_batch)
    sizes = [head, *[total_batch] * whole, tail]
    # The groups are cut from the sorted utterances in a random order, each staying in its own place in time.
    groups: list[Tensor] = [by_length[:0]] * len(sizes)
    begin = 0
    for group in draws(seed, GROUPS, key, torch.arange(len(sizes)))[0].argsort(stable=True).tolist():
        groups[group] = by_length[begin : begin + sizes[group]]
        begin += sizes[group]
    return torch.cat(groups)


class Crops(Dataset):
    """Batch k of the endless sequence: samples k batch_size up to (k + 1) batch_size.

    Args:
        corpus: the utterances.
        config: the model; says how long a crop is.
        batch_size: samples in a batch.
        total_batch: samples in a step; a multiple of batch_size.
        seed: of the order and the crops.
        share: (rank, size): of each batch, every size-th sample from `rank` on, the part of one process.
        cache_gb: disk for decoded audio; see `audio_cache`.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: ModelConfig,
        batch_size: int,
        total_batch: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        cache_gb: float = 0.0,
    ):
        self.corpus = corpus
        self.cache = AudioCache(corpus.samples, cache_gb) if cache_gb else None
        self.hop = config.audio.hop
        self.crop = config.task.sequence_length * self.hop  # samples
        self.stride = config.audio.stride
        self.batch_size = batch_size
        self.seed = seed
        self.total_batch = total_batch
        self.share = share
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.corpus.paths) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """`epoch_order`, kept for this epoch and the one before (a batch may span both)."""
        if epoch not in self._orders:
            taken = self.corpus.samples.clamp_max(self.crop)
            last = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = {**last, epoch: epoch_order(taken, self.total_batch, self.seed, epoch)}
        return self._orders[epoch]

    def padding_share(self, epoch: int) -> float:
        """Of the tokens that the model computes in the batches beginning in an epoch, the share that is padding."""
        count = len(self.corpus.paths)
        begin, end = (-(-bound * count // self.batch_size) * self.batch_size for bound in (epoch, epoch + 1))
        taken = self.corpus.samples.clamp_max(self.crop)
        # The last of these batches may reach into the next epoch, or, of a tiny corpus, into several.
        epochs = range(begin // count, -(-end // count))
        orders = [epoch_order(taken, self.total_batch, self.seed, number) for number in epochs]
        utterances = torch.cat(orders)[begin - epochs.start * count :][: end - begin] if orders else taken[:0].long()
        tokens = num_tokens(taken[utterances], self.stride).view(-1, self.batch_size)
        return 1 - int(tokens.sum()) / max(int(tokens.amax(1).sum()) * self.batch_size, 1) if len(tokens) else 0.0

    def place(self, number: int) -> tuple[int, int, int]:
        """Utterance, first sample and samples of the crop that a sample number stands for."""
        epoch, position = divmod(number, len(self.corpus.paths))
        utterance = int(self.order(epoch)[position])
        length = int(self.corpus.samples[utterance])
        start = draw(self.seed, CROP, number, 0) % (max(0, length - self.crop) // self.hop + 1) * self.hop
        return utterance, start, min(self.crop, length - start)

    def __getitem__(self, index: int) -> Batch:
        rank, size = self.share
        return self.read(range(index * self.batch_size + rank, (index + 1) * self.batch_size, size))

    def read(self, wanted: Iterable[int]) -> Batch:
        """The crops of some sample numbers."""
        numbers, audio, problems = [], [], []
        for number in wanted:
            utterance, start, samples = self.place(number)
            path = self.corpus.paths[utterance]
            try:
                if self.cache is not None and self.cache.keeps(utterance):
                    wav = self.cache.read(path, start, samples)
                else:
                    wav = read_audio(path, start, samples)
                if len(wav) < samples:
                    raise AudioError(f"{path}: ends early: it was longer when this run began, or its header lies")
            except AudioError as error:
                problems.append((path, str(error)))
                continue
            numbers.append(number)
            audio.append(wav)
        return Batch(
            torch.tensor(numbers, dtype=torch.int64),
            pad_sequence(audio, batch_first=True) if audio else torch.zeros(0, 0),
            torch.tensor([len(wav) for wav in audio], dtype=torch.int64),
            problems,
        )


class Continuing(Sampler):
    """Batch numbers from `first` on, `count` in one pass; the next pass goes on where the last one ended."""

    def __init__(self, first: int, count: int):
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        # A generator: DataLoader makes two of these for a pass with workers, and starts one.
        begin = self.first
        self.first += self.count
        yield from range(begin, begin + self.count)


def _leave_stopping_to_the_parent(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach the workers too, but it is the training process that decides when to stop.

    What that process itself sends is obeyed: multiprocessing ends workers by SIGTERM, and would wait for ever for one
    that ignores it. (When it dies without a word, torch's workers notice and end by themselves.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: who sent a signal cannot be known, so SIGTERM acts
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return
    parent = multiprocessing.parent_process().pid

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Loader(DataLoader):
    """Its workers begin with the signals blocked that they leave to the parent, so that none ends one on its way up."""

    def __iter__(self) -> Iterator[Batch]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            return super().__iter__()  # starts the workers, which inherit the mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def loader(crops: Crops, first: int, count: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """Batches `first` up to first + count, decoded by `num_workers` processes ahead of time (0: when asked for)."""
    return Loader(
        crops,
        batch_size=None,  # an item is a batch already
        sampler=Continuing(first, count),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_stopping_to_the_parent,
    )
