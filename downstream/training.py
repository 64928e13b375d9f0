"""Heads trained on features that are there already: same heads, labels, batches, loss and optimiser as S3PRL's route.

The heads of several learning rates are trained side by side on the same batches, so that each batch is read once.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from saat.downstream.config import ModelrcConfig
from saat.downstream.corpus import Utterance
from saat.downstream.data import LabelledCorpus, train_batches
from saat.downstream.probe import Head, Outcome, Probe, new_records, record, summarise
from saat.errors import SaatError
from saat.upstream.config import SAMPLE_RATE

CHUNK = 2048  # rows at a time: what a hidden layer makes of them stays in a core's cache


class SplitFeatures:
    """What a probe classifies in some utterances, and the labels.

    Args:
        corpus: says the labels.
        probe: which one.
        utterances: those without features are left out.
        layers: for each hidden state, utterance id to (T, D) features.
        samples: utterance id to the length of its audio.
        name: of the split, for the error.

    Errors: SaatError where no utterance has features.
    """

    def __init__(
        self,
        corpus: LabelledCorpus,
        probe: Probe,
        utterances: Iterable[Utterance],
        layers: Sequence[Mapping[str, Tensor]],
        samples: Mapping[str, int],
        name: str,
    ):
        utterances = [u for u in utterances if u.id in layers[0]]
        if not utterances:
            raise SaatError(f"no utterance of the {name} split has features: extract those of the corpus in datarc")
        self.dim = layers[0][utterances[0].id].shape[1]
        self.pooled = None
        self.tokens = [len(layers[0][u.id]) for u in utterances]
        labels = [corpus.labels(u, samples[u.id]) for u in utterances]
        if probe.pooled:
            # The mean over time, once, instead of in every batch.
            means = [torch.stack([layer[u.id].float().mean(dim=0) for u in utterances]) for layer in layers]
            self.pooled = torch.stack(means)  # (layers, utterances, D)
            self.labels = [label.reshape(1) for label in labels]
            return
        labels = [label.expand(n) if label.dim() == 0 else label for label, n in zip(labels, self.tokens, strict=True)]
        # As in Head.inputs: what has no partner is left out.
        self.labels = [label[:n] for label, n in zip(labels, self.tokens, strict=True)]
        self.features = [
            [layer[u.id][: len(y)] for u, y in zip(utterances, self.labels, strict=True)] for layer in layers
        ]

    def __len__(self) -> int:
        """Utterances."""
        return len(self.labels)

    def batch(self, indices: Sequence[int], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """(layers, N, D) float32 and the targets (N,)."""
        targets = torch.cat([self.labels[i] for i in indices])
        if self.pooled is not None:
            x = self.pooled[:, torch.as_tensor(indices)]
        else:
            rows = [torch.cat([layer[i] for i in indices]) for layer in self.features]
            x = rows[0][None] if len(rows) == 1 else torch.stack(rows)
        return x.to(device).float(), targets.to(device)


class MixedHead(nn.Module):
    """A head, after a learnt weighted sum of the hidden states where there is more than one (S3PRL's Featurizer)."""

    def __init__(self, head: Head, layers: int):
        super().__init__()
        self.head = head
        self.weights = nn.Parameter(torch.zeros(layers)) if layers > 1 else None

    def mix(self, x: Tensor) -> Tensor:
        """(layers, N, D) to (N, D)."""
        return x[0] if self.weights is None else torch.einsum("l,lnd->nd", self.weights.softmax(dim=0), x)

    def logits(self, x: Tensor) -> Tensor:
        """(layers, N, D) to (N, classes)."""
        return self.head.layers(self.mix(x))

    def layer_weights(self) -> list[float] | None:
        """How much of each hidden state is taken; they sum to 1."""
        return None if self.weights is None else self.weights.detach().softmax(dim=0).tolist()


def first_head(probe: Probe, dim: int, classes: int, modelrc: ModelrcConfig, layers: int, seed: int) -> MixedHead:
    """The head with the first weights that S3PRL's runner gives it for that `--seed` (and one of our upstreams)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.randn(SAMPLE_RATE)  # the waveform by which S3PRL's Featurizer tries the upstream
        return MixedHead(Head(probe, dim, classes, modelrc), layers)


def summed_losses(heads: Sequence[MixedHead], x: Tensor, targets: Tensor) -> Tensor:
    """(): the sum of all heads' cross entropies, each summed over the N rows."""
    if all(head.weights is None and len(head.head.layers) == 1 for head in heads):
        # Linear heads on the same rows are one matrix product.
        layers = [head.head.layers[0] for head in heads]
        weight = torch.cat([layer.weight for layer in layers])
        logits = F.linear(x[0], weight, torch.cat([layer.bias for layer in layers])).view(len(targets), len(heads), -1)
        logits, repeated = logits.flatten(0, 1), targets.repeat_interleave(len(heads))
        return F.cross_entropy(logits.float(), repeated, reduction="sum")
    return sum(F.cross_entropy(head.logits(x).float(), targets, reduction="sum") for head in heads)


def fast_products(device: str | torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 matrix products, in training, on a CPU that has units for them; elsewhere float32."""
    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if torch.device(device).type == "cpu" and any(getattr(torch.cpu, has, lambda: False)() for has in units):
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


@dataclass
class Trained:
    """A head at the step that did best on dev."""

    lr: float
    dev: float = -1.0
    best_step: int = 0
    steps: int = 0  # it was trained for
    head: MixedHead | None = None


def train_heads(
    make_head: Callable[[], MixedHead],
    train: SplitFeatures,
    dev: SplitFeatures,
    classes: int,
    *,
    lrs: Sequence[float],
    steps: int,
    batch_size: int,
    seed: int,
    eval_every: int,
    patience: int | None = None,
    device: str | torch.device = "cpu",
    exact: bool = False,
    progress: str | None = None,
) -> list[Trained]:
    """Train a head for each learning rate, by Adam with gradients clipped to norm 1, on the same batches.

    Args:
        make_head: the head at its start, the same each time.
        train, dev: the data.
        classes: how many.
        lrs: learning rates.
        steps: at most; a batch is `batch_size` utterances, drawn as the experts do by `seed` and epoch.
        eval_every: steps from one look at dev to the next.
        patience: looks without a better dev accuracy, after which a head is trained no further; None: to the end.
        device: where.
        exact: float32 matrix products everywhere.
        progress: what to write at a progress bar; None: no bar.

    Returns: of each learning rate, the weights of its best step on dev.
    """
    running = [(make_head().to(device), Trained(lr)) for lr in lrs]
    results = [trained for _, trained in running]
    groups = [{"params": list(head.parameters()), "lr": trained.lr} for head, trained in running]
    optimizer = torch.optim.Adam(groups, fused=True)
    products = contextlib.nullcontext() if exact else fast_products(device)
    step, epoch = 0, 0
    with tqdm(total=steps, desc=progress, unit="step", disable=progress is None) as bar:
        while step < steps and running:
            for batch in train_batches(len(train), batch_size, seed, epoch)[: steps - step]:
                _step([head for head, _ in running], optimizer, *train.batch(batch, device), products)
                step += 1
                bar.update()
                if step % eval_every == 0 or step == steps:
                    for head, trained in running:
                        trained.steps = step
                        accuracy = evaluate(head, dev, classes, device)["accuracy"]
                        if accuracy > trained.dev:
                            trained.dev, trained.best_step = accuracy, step
                            trained.head = copy.deepcopy(head)
                    bar.set_postfix(dev=f"{max(trained.dev for trained in results):.3f}", refresh=False)
                    if patience is not None:
                        running = [(h, t) for h, t in running if step - t.best_step < patience * eval_every]
                    if not running:
                        break
            epoch += 1
    return results


def _step(
    heads: list[MixedHead],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    targets: Tensor,
    products: contextlib.AbstractContextManager,
) -> None:
    optimizer.zero_grad()
    for first in range(0, len(targets), CHUNK):
        rows = slice(first, first + CHUNK)
        with products:
            loss = summed_losses(heads, x[:, rows], targets[rows])
        (loss / len(targets)).backward()
    for head in heads:
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def evaluate(
    head: MixedHead, split: SplitFeatures, classes: int, device: str | torch.device = "cpu", majority: int | None = None
) -> dict[str, Any]:
    """Accuracy and loss of a head on a split, as the expert computes them, in float32."""
    records = new_records()
    for first in range(0, len(split), 64):
        indices = range(first, min(first + 64, len(split)))
        x, targets = split.batch(indices, device)
        # By chunks, as in training.
        logits = torch.cat([head.logits(x[:, i : i + CHUNK]) for i in range(0, len(targets), CHUNK)])
        outcome = Outcome(F.cross_entropy(logits, targets), logits.argmax(dim=-1), targets)
        record(records, outcome, len(indices), sum(split.tokens[i] for i in indices), classes)
    return summarise(records, majority)
