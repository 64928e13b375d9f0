"""What a frozen upstream makes of utterances: the hidden states that S3PRL's runner would hand to an expert."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from s3prl.upstream.interfaces import Featurizer, UpstreamBase
from torch import Tensor
from tqdm import tqdm

from saat.downstream.corpus import Utterance, num_tokens, skip, some
from saat.errors import SaatError
from saat.upstream.audio import AudioError, read_audio
from saat.upstream.config import SAMPLE_RATE


class UtteranceFeatures(NamedTuple):
    """One utterance's features."""

    id: str
    samples: int
    states: list[Tensor]  # a layer each, (T, D) float32 on the CPU


class Extractor:
    """Hidden states of any S3PRL upstream, which is put into eval mode.

    Args:
        upstream: the upstream.
        selection: S3PRL's `-s`.
        layers: which of the hidden states, by number, with `selection` "hidden_states"; None: what S3PRL's
            Featurizer makes of the selection (of several hidden states their plain mean: an untrained weighted sum).
        device: where the upstream runs.

    Attributes:
        stride: samples from token to token.
        dim: values in a token.
        seconds: what the upstream took so far; reading files is not counted.
        bad: the files that the last call left out, and why.
    """

    def __init__(
        self,
        upstream: UpstreamBase,
        selection: str = "last_hidden_state",
        layers: list[int] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.upstream = upstream.to(device).eval()
        self.featurizer = Featurizer(self.upstream, selection, upstream_device=device).to(device)
        self.layers = layers
        self.device = device
        self.stride = self.featurizer.downsample_rate
        self.dim = self.featurizer.output_dim
        self.seconds = 0.0
        self.bad: list[str] = []

    @torch.no_grad()
    def __call__(
        self, utterances: Iterable[Utterance], batch_seconds: float = 60.0, progress: bool = True
    ) -> Iterator[UtteranceFeatures]:
        """Features of each utterance, the longest first; what cannot be read, or is shorter than a token, is named
        and left out. A batch holds so many seconds of audio, padding included.

        Errors: SaatError where no file can be used.
        """
        self.bad = []
        ordered = sorted(utterances, key=lambda utterance: (-utterance.samples, utterance.id))
        usable = False
        with tqdm(total=len(ordered), desc="features", unit="utt", disable=not progress) as bar:
            for batch in _by_seconds(ordered, batch_seconds):
                names, wavs = [], []
                for utterance in batch:
                    try:
                        wav = read_audio(utterance.path)
                    except AudioError as error:
                        self.bad.append(str(error))
                        continue
                    if num_tokens(len(wav), self.stride) < 1:
                        self.bad.append(f"{utterance.path}: shorter than a token")
                        continue
                    names.append(utterance.id)
                    wavs.append(wav.to(self.device))
                if wavs:
                    usable = True
                    start = time.perf_counter()
                    layers = self._states(wavs)
                    self.seconds += time.perf_counter() - start
                    for i, name in enumerate(names):
                        yield UtteranceFeatures(name, len(wavs[i]), [states[i] for states in layers])
                bar.update(len(batch))
        tell_bad(self.bad)
        if not usable:
            raise SaatError(f"no features: none of the {len(ordered)} audio files can be used: {some(self.bad)}")

    def _states(self, wavs: list[Tensor]) -> list[list[Tensor]]:
        """A layer each, an utterance each, (T, D)."""
        result = self.upstream(wavs)
        if self.layers is None:
            layers = [self.featurizer(wavs, result)]
        else:
            layers = [self.featurizer.tolist(wavs, result["hidden_states"][layer]) for layer in self.layers]
        return [[state.float().cpu() for state in states] for states in layers]


def tell_bad(bad: list[str]) -> None:
    """Name the files that are left out."""
    skip(bad, "audio files that turned out bad", strict=False)


def _by_seconds(ordered: list[Utterance], seconds: float) -> Iterable[list[Utterance]]:
    """Runs of utterances, the longest first, that fill up to so many seconds once they are padded."""
    batch: list[Utterance] = []
    for utterance in ordered:
        if batch and (len(batch) + 1) * batch[0].samples > seconds * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(utterance)
    if batch:
        yield batch
