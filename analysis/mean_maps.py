"""The mean attention map of every head over a corpus.

Every map is L x L, of crops of exactly L tokens. Shorter utterances are left out: each of their rows is spread over
fewer keys, so they would make early keys look more attended to than they are.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from saat.analysis.heads import globalness
from saat.errors import SaatError
from saat.pretrain.held_out import split
from saat.pretrain.images import attention_maps
from saat.pretrain.manifest import Corpus
from saat.upstream.attention.patterns import normalise_rows
from saat.upstream.audio import AudioError, read_audio
from saat.upstream.config import SAMPLE_RATE
from saat.upstream.encoder import AudioAlbert
from saat.upstream.features import Features


@dataclass
class Averages:
    """What became of a corpus."""

    maps: Tensor  # (layers, A, L, L) float64, the mean over all crops; rows sum to 1
    entropy: Tensor  # (layers, A), nats: of a row of one crop's map, mean over rows and crops
    utterances: int
    crops: int


def long_enough(corpus: Corpus, length: int, stride: int, count: int | None = None) -> Corpus:
    """The utterances of at least `length` whole tokens; of these `count`, whatever else the corpus has."""
    enough = [i for i, samples in enumerate(corpus.samples.tolist()) if samples >= length * stride]
    if not enough:
        longest = int(corpus.samples.max())
        raise SaatError(
            f"no utterance has {length} tokens ({length * stride / SAMPLE_RATE:.2f} s), the longest of "
            f"{len(corpus.paths)} has {longest // stride} ({longest / SAMPLE_RATE:.2f} s): pass a smaller --length, "
            "and pre-train with config.model.transformer.max_length the same"
        )
    left_out = len(corpus.paths) - len(enough)
    if left_out:
        print(f"left out {left_out} of {len(corpus.paths)} utterances: shorter than {length} tokens", file=sys.stderr)
    corpus = corpus.part(enough)
    return corpus if count is None or count >= len(enough) else split(corpus, count, seed=0)[1]


@torch.no_grad()
def average_maps(encoder: AudioAlbert, corpus: Corpus, length: int) -> Averages:
    """The mean of `weights()` over the crops of `length` tokens that each utterance is cut into, the rest left over.

    Features are normalised over the crop, and positions start with it, as in pre-training; nothing is masked. Files
    that cannot be read are named and left out.
    """
    audio, transformer = encoder.config.audio, encoder.config.transformer
    features = Features(audio)
    samples = length * audio.stride
    heads = (transformer.num_hidden_layers, transformer.num_attention_heads)
    total = torch.zeros(*heads, length, length, dtype=torch.float64)
    entropy = torch.zeros(heads, dtype=torch.float64)
    utterances = crops = 0
    found = list(zip(corpus.paths, corpus.samples.tolist(), strict=True))
    for path, count in tqdm(found, desc="averaging", unit="utt", disable=len(found) < 50):
        try:
            wav = read_audio(path)
            if len(wav) < count:
                raise AudioError(f"{path}: ends early: its header lies")
        except AudioError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for start in range(0, count - samples + 1, samples):
            maps = attention_maps(encoder, features([wav[start : start + samples]])[0][0])
            total += maps
            entropy += globalness(maps)
            crops += 1
        utterances += 1
    if not crops:
        raise SaatError(f"none of {len(found)} utterances can be read")
    if not bool(total.isfinite().all()):
        raise SaatError("the attention maps are not finite: the checkpoint's weights are damaged, take another")
    return Averages(normalise_rows(total), entropy / crops, utterances, crops)


def by_distance(maps: Tensor) -> Tensor:
    """Each diagonal's mean laid out over the diagonal again, rows scaled to sum 1: (…, L, L) to (…, L, L)."""
    length = maps.shape[-1]
    positions = torch.arange(length)
    diagonal = positions[None, :] - positions[:, None] + length - 1  # (L, L) in [0, 2 L - 1)
    sums = maps.new_zeros(*maps.shape[:-2], 2 * length - 1).index_add(-1, diagonal.flatten(), maps.flatten(-2))
    return normalise_rows((sums / diagonal.flatten().bincount())[..., diagonal])
