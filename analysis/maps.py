"""The attention maps of a pre-trained model on a corpus."""

import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from saat.errors import SaatError
from saat.pretrain.images import attention_maps
from saat.upstream import checkpoint
from saat.upstream.attention import variant
from saat.upstream.audio import AudioError, find_audio, read_audio
from saat.upstream.expert import UpstreamExpert


def load_model(ckpt: str | Path, upstream: str | None = None) -> UpstreamExpert:
    """A checkpoint's model, in eval, on the CPU.

    Args:
        ckpt: a `states-N.ckpt`, a `model.safetensors` or the folder of a published checkpoint.
        upstream: its variant; by default the one the checkpoint names.

    Errors: SaatError when it cannot be read, is of another variant, or the variant is unknown or has no attention.
    """
    name = upstream or str(checkpoint.load(ckpt)["Upstream_Config"].get("upstream"))
    if variant(name).attention is None:
        raise SaatError(f"{name} has no attention, so it has no heads: choose another upstream, such as saat_qk")
    return UpstreamExpert(name, ckpt=str(ckpt)).eval()


def some_utterances(corpus: Iterable[str | Path] | str | Path, count: int) -> list[Path]:
    """`count` audio files below one or several folders, drawn with a fixed seed; all of them where there are no more.

    Errors: SaatError for a missing or empty folder, or a count below 1.
    """
    if count < 1:
        raise SaatError(f"the number of utterances must be at least 1, not {count}")
    folders = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    if not folders:
        raise SaatError("no utterances: name a folder of audio")
    files = sorted({path for folder in folders for path in find_audio(folder)})
    return sorted(random.Random(0).sample(files, min(count, len(files))))


@torch.no_grad()
def corpus_maps(
    model: UpstreamExpert, files: Iterable[Path], tokens: int | None = None
) -> Iterator[tuple[Path | None, Tensor]]:
    """`weights()` of every layer on the beginning of each utterance.

    At most the model's `max_length` tokens are used: the crop that it was pre-trained on, and all that variants hold
    whose weights have a fixed size. The features are normalised over the whole utterance.

    Args:
        model: of `load_model`.
        files: audio.
        tokens: cut to exactly so many; shorter utterances are left out.

    Yields: (file, (layers, A, n, n)); a file that cannot be read is named on stderr and left out. Where weights do not
    depend on the input once (None, (1, A, n, n)), n being `tokens` or L: softmax(R) cut to n x n, rows summing to 1;
    one set a layer where layers do not share theirs.

    Errors: SaatError where no file can be read.
    """
    longest = model.model_config.transformer.max_length
    size = min(tokens or longest, longest)
    if not variant(model.model_config.upstream).input_dependent:
        maps = attention_maps(model.encoder, torch.zeros(size, 1))[..., :size, :size]
        yield None, maps / maps.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        return
    broken, read = [], 0
    for file in files:
        try:
            audio = read_audio(file)
        except AudioError as error:
            broken.append(str(error))
            print(f"skipped: {error}", file=sys.stderr)
            continue
        read += 1
        features = model.features([audio])[0][0, :size]
        if tokens is None or len(features) == size:
            yield file, attention_maps(model.encoder, features)
    if broken and not read:
        raise SaatError(f"none of the {len(broken)} audio files can be read: {broken[0]}")
