"""What a probe learns from: the utterances of each split with their labels, and the batches S3PRL's runner draws."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import get_rank, get_world_size, is_initialized
from torch.utils.data import DataLoader, Dataset

from saat.downstream.config import DataConfig, check_splits
from saat.downstream.corpus import Utterance, num_tokens, read_corpus, skip, some, too_short
from saat.downstream.phones import Phones, read_phones, token_centres
from saat.errors import SaatError
from saat.upstream.audio import AudioError, read_audio


class LabelledCorpus:
    """The corpus of one probe.

    Args:
        labels: `speaker` or `phone`.
        config: where the corpus and the labels are.
        stride: samples from token to token of the upstream.

    Attributes:
        splits: split name to utterances, sorted by id.
        utterances: all of them, those without usable labels included.
        classes: the names of the labels; a label is an index into them.

    Errors: SaatError; whatever concerns single utterances is skipped and told, or an error with `strict`.
    """

    def __init__(self, labels: str, config: DataConfig, stride: float):
        self.stride = stride
        self.strict = config.strict
        self.phones: Phones | None = read_phones(config.phones) if labels == "phone" else None
        self.splits = read_corpus(config, stride)
        self.utterances = [utterance for split in self.splits.values() for utterance in split]
        if self.phones is not None:
            skip(self.phones.broken, "TextGrids that cannot be read", self.strict)
            self._keep(lambda u: None if u.id in self.phones.alignments else "", "utterances without an alignment")
            self._keep(self._misfit, "utterances whose alignment has the wrong length")
            self.classes = self.phones.names
        else:
            self.classes = sorted({utterance.speaker for utterance in self.splits["train"]})
            self._check_speakers()
        self._index = {name: index for index, name in enumerate(self.classes)}

    def _keep(self, problem: Callable[[Utterance], str | None], what: str) -> None:
        """Leave out the utterances that have a problem; "" is one that `what` says already."""
        found: dict[str, str] = {}
        for utterance in sorted((u for split in self.splits.values() for u in split), key=lambda u: u.id):
            why = problem(utterance)
            if why is not None:
                found[utterance.id] = f"{utterance.id} ({why})" if why else utterance.id
        if found and len(found) == sum(map(len, self.splits.values())):
            raise SaatError(f"nothing is left: all {len(found)} are {what}: {some(found.values())}")
        skip(list(found.values()), what, self.strict)
        self.splits = {name: [u for u in split if u.id not in found] for name, split in self.splits.items()}

    def _misfit(self, utterance: Utterance) -> str | None:
        return self.phones.alignments[utterance.id].misfit(utterance.samples, self.stride)

    def _check_speakers(self) -> None:
        for split in ("dev", "test"):
            unseen = sorted({u.speaker for u in self.splits[split]} - set(self.classes))
            if unseen:
                raise SaatError(
                    f"{len(unseen)} speakers of the {split} split are not in the training split: {some(unseen)}. A "
                    "speaker probe cannot know them: give lists whose splits share their speakers (datarc.splits), "
                    "or none"
                )

    def split(self, name: str) -> list[Utterance]:
        """The utterances of a split. Errors: SaatError where it is unknown or empty."""
        check_splits([name], "split")
        if not self.splits[name]:
            raise SaatError(f"the {name} split has no utterances: give a larger corpus, or other lists (datarc.splits)")
        return self.splits[name]

    def labels(self, utterance: Utterance, samples: int) -> Tensor:
        """int64: () the speaker, or (tokens,) the phone at each token's centre, for that many samples of audio."""
        if self.phones is None:
            return torch.tensor(self._index[utterance.speaker])
        centres = token_centres(num_tokens(samples, self.stride), self.stride)
        return torch.from_numpy(self.phones.alignments[utterance.id].at(centres))

    def majority(self, pooled: bool) -> int:
        """The most frequent class of the training split; `pooled` counts utterances, not tokens."""
        counts = torch.zeros(len(self.classes), dtype=torch.int64)
        for utterance in self.splits["train"]:
            labels = self.labels(utterance, utterance.samples)
            times = 1 if pooled or labels.dim() else num_tokens(utterance.samples, self.stride)
            counts += times * torch.bincount(labels.reshape(-1), minlength=len(counts))
        return int(counts.argmax())


def other_speakers(folders: list[str], corpus: LabelledCorpus, phones: str) -> LabelledCorpus:
    """A second corpus to test a phone probe on.

    Errors: SaatError where speakers of it are in the splits that `corpus` trains and chooses by.
    """
    other = LabelledCorpus("phone", DataConfig(corpus=list(folders), phones=phones), corpus.stride)
    known = {utterance.speaker for split in ("train", "dev") for utterance in corpus.splits[split]}
    shared = sorted(known & {utterance.speaker for utterance in other.utterances})
    if shared:
        raise SaatError(
            f"--test-other is for speakers that a probe was not trained on, but {len(shared)} of {', '.join(folders)} "
            f"are in the train or dev split: {some(shared)}. Give another folder, or --splits without them"
        )
    return other


def train_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in an order that (seed, epoch) alone decides."""
    order = list(range(count))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def eval_batches(utterances: list[Utterance], batch_size: int) -> list[list[int]]:
    """Every index once, the longest utterances first."""
    order = sorted(range(len(utterances)), key=lambda i: (-utterances[i].samples, utterances[i].id))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Item(NamedTuple):
    """One utterance as a worker read it: audio and labels, or the reason why there is none."""

    wav: Tensor | None
    labels: Tensor | None
    problem: str | None


class AudioDataset(Dataset):
    """The utterances of a split, read when asked for. A file that turns out bad gives its problem, not an error."""

    def __init__(self, corpus: LabelledCorpus, utterances: list[Utterance]):
        self.corpus = corpus
        self.utterances = utterances

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Item:
        utterance = self.utterances[index]
        try:
            wav = read_audio(utterance.path)
        except AudioError as error:
            return Item(None, None, str(error))
        short = too_short(len(wav), self.corpus.stride)
        if short:
            return Item(None, None, f"{utterance.path}: shorter than a token ({short})")
        return Item(wav, self.corpus.labels(utterance, len(wav)), None)


class Batches:
    """A data loader for S3PRL's runner: batches of (waveforms, labels), both lists.

    Files that turn out bad are left out of their batch and named once; with `strict` they are an error.

    Args:
        dataset: what the batches index.
        batches: the indices of each batch.
        num_workers: processes that read; the batches are the same whatever their number.
        told: files already named; added to.
        first: the batch to begin with, for an epoch that is resumed.
        started: called with the number of batches drawn so far, as each is handed out.
    """

    def __init__(
        self,
        dataset: AudioDataset,
        batches: list[list[int]],
        num_workers: int,
        told: set[str],
        first: int = 0,
        started: Callable[[int], None] | None = None,
    ):
        self.dataset = dataset
        self.batches = batches
        self.first = first
        self.told = told
        self.started = started
        self.loader = DataLoader(dataset, batch_sampler=batches[first:], num_workers=num_workers, collate_fn=list)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        usable = 0
        for number, items in enumerate(self.loader, self.first + 1):
            self._tell([item.problem for item in items if item.problem is not None])
            if self.started is not None:
                self.started(number)
            good = [item for item in items if item.problem is None]
            if good:
                usable += 1
                yield [item.wav for item in good], [item.labels for item in good]
        if not usable and self.first == 0:
            raise SaatError(f"none of the {len(self.dataset)} audio files can be used: {some(self.told)}")

    def _tell(self, problems: list[str]) -> None:
        fresh = [problem for problem in problems if problem not in self.told]
        self.told.update(fresh)
        skip(fresh, "audio files that turned out bad", self.dataset.corpus.strict)


def shard(batches: list[list[int]]) -> list[list[int]]:
    """This process's batches: all of them, or in distributed training its share, of equal length everywhere."""
    if not is_initialized():
        return batches
    world = get_world_size()
    return batches[: len(batches) // world * world or len(batches)][get_rank() :: world]
