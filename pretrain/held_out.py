"""Utterances that are kept from training, to see the loss on them."""

import hashlib

from saat.pretrain.data import Batch, Crops
from saat.pretrain.manifest import Corpus
from saat.upstream.config import ModelConfig


def split(corpus: Corpus, count: int, seed: int) -> tuple[Corpus, Corpus]:
    """The corpus less `count` utterances, and these: the ones whose names, hashed with the seed, come first.

    By name, so that they stay the same where the corpus lies elsewhere, and all but the same where it grows.
    """
    digest = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in corpus.names]
    order = sorted(range(len(digest)), key=digest.__getitem__)
    return corpus.part(sorted(order[count:])), corpus.part(sorted(order[:count]))


class HeldOut:
    """One crop of each held-out utterance, with one mask: the same at every look.

    Args:
        corpus: the held-out utterances.
        config: the model.
        batch_size: crops in a batch, as in training.
        seed: of crops and masks.
    """

    def __init__(self, corpus: Corpus, config: ModelConfig, batch_size: int, seed: int):
        self.corpus = corpus
        self.batch_size = batch_size
        self.crops = Crops(corpus, config, 1, 1, seed)  # crop and mask of an utterance depend on no batch size
        self._kept: list[Batch] | None = None

    def batches(self, rank: int = 0, size: int = 1) -> list[Batch]:
        """What process `rank` of `size` looks at; read once, then kept: a megabyte for a crop of 15 s."""
        if self._kept is None:
            numbers = list(range(rank, len(self.corpus.paths), size))
            parts = [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]
            self._kept = list(map(self.crops.read, parts))
        return self._kept
