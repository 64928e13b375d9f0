"""The four probes: their heads, their loss, and the S3PRL downstream expert they share (SPEC section 4)."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saat.downstream.config import ModelrcConfig, check_experiment, expert_config
from saat.downstream.data import AudioDataset, Batches, LabelledCorpus, eval_batches, shard, train_batches
from saat.errors import SaatError, did_you_mean


@dataclass(frozen=True)
class Probe:
    """One probe: what is predicted, from what, by what."""

    name: str
    labels: str  # `speaker` or `phone`
    pooled: bool = False  # one prediction an utterance, from the mean of its tokens
    hidden_layers: int = 0


PROBES = {
    probe.name: probe
    for probe in (
        Probe("speaker_utterance", "speaker", pooled=True),
        Probe("speaker_frame", "speaker"),
        Probe("phoneme_1hidden", "phone", hidden_layers=1),
        Probe("phoneme_2hidden", "phone", hidden_layers=2),
    )
}


def find_probe(name: str) -> Probe:
    """The probe of a name; SaatError names the nearest known one."""
    if name not in PROBES:
        raise SaatError(f"unknown probe '{name}': {did_you_mean(name, PROBES)}")
    return PROBES[name]


class Outcome(NamedTuple):
    """A batch's predictions. N is the number of utterances (pooled) or of real tokens."""

    loss: Tensor  # (), the mean over the N
    predicted: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64


class Head(nn.Module):
    """The trainable part: linear layers with ReLU between them.

    Args:
        probe: which one.
        input_dim: values in a token.
        classes: how many labels there are.
        config: the size of the hidden layers.
    """

    def __init__(self, probe: Probe, input_dim: int, classes: int, config: ModelrcConfig):
        super().__init__()
        self.probe = probe
        layers: list[nn.Module] = []
        for _ in range(probe.hidden_layers):
            layers += [nn.Linear(input_dim, config.hidden_size), nn.ReLU()]
            input_dim = config.hidden_size
        self.layers = nn.Sequential(*layers, nn.Linear(input_dim, classes))

    def inputs(self, features: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What is classified: (N, D) and the targets (N,); features are concatenated, so padding is nowhere.

        Args:
            features: B tensors (T_b, D), an utterance's real tokens each.
            labels: B tensors, () or at least (T_b,).
        """
        if self.probe.pooled:
            return torch.stack([f.mean(dim=0) for f in features]), torch.stack(labels)
        # A token more or less than labels: upstreams round differently. What has no partner is left out.
        tokens, targets = [], []
        for f, label in zip(features, labels, strict=True):
            label = label.expand(len(f)) if label.dim() == 0 else label
            tokens.append(f[: len(label)])
            targets.append(label[: len(f)])
        return torch.cat(tokens), torch.cat(targets)

    def classify(self, x: Tensor, targets: Tensor) -> Outcome:
        """(N, D) and (N,) to the outcome."""
        logits = self.layers(x)
        return Outcome(F.cross_entropy(logits, targets), logits.detach().argmax(dim=-1), targets)

    def forward(self, features: list[Tensor], labels: list[Tensor]) -> Outcome:
        return self.classify(*self.inputs(features, labels))


def record(records: dict[str, list], outcome: Outcome, utterances: int, tokens: int, classes: int) -> None:
    """Add a batch to the records, as sums."""
    records["loss"].append(outcome.loss.item() * len(outcome.targets))
    records["correct"].append(int((outcome.predicted == outcome.targets).sum()))
    records["targets"].append(torch.bincount(outcome.targets, minlength=classes).cpu())
    records["utterances"].append(utterances)
    records["tokens"].append(tokens)


def summarise(records: dict[str, list], majority: int | None = None) -> dict[str, Any]:
    """accuracy, loss, utterances, tokens over all that was recorded; chance: the share of the class `majority`."""
    targets = torch.stack(records["targets"]).sum(dim=0)
    count = int(targets.sum())
    summary = {
        "accuracy": sum(records["correct"]) / count,
        "loss": sum(records["loss"]) / count,
        "utterances": sum(records["utterances"]),
        "tokens": sum(records["tokens"]),
    }
    return summary if majority is None else {**summary, "chance": int(targets[majority]) / count}


class ProbeExpert(nn.Module):
    """An S3PRL downstream expert; each probe's `expert.py` names itself in `probe`.

    Args:
        upstream_dim: values in a token.
        upstream_rate: samples from token to token.
        downstream_expert: the config's section of that name.
        expdir: where log.log and accuracy-<split>.json go.
        kwargs: the other sections of the config, and S3PRL's command line.

    Errors: SaatError for anything wrong with the config or the corpus.
    """

    probe: str

    def __init__(self, upstream_dim: int, upstream_rate: float, downstream_expert: dict, expdir: str, **kwargs):
        super().__init__()
        check_experiment(kwargs)
        config = expert_config(downstream_expert)
        self.kind = find_probe(self.probe)
        self.datarc = config.datarc
        self.expdir = Path(expdir)
        self.seed = kwargs.get("seed", 0)
        self.mode = kwargs.get("mode", "train")
        self.init_ckpt = kwargs.get("init_ckpt")
        self.corpus = LabelledCorpus(self.kind.labels, config.datarc, upstream_rate)
        for split in self._needed(kwargs):
            self.corpus.split(split)
        self.head = Head(self.kind, upstream_dim, len(self.corpus.classes), config.modelrc)
        # Saved and restored with the weights: the best dev accuracy, and where in which epoch training is.
        self.register_buffer("best_dev", torch.tensor(-1.0))
        self.register_buffer("position", torch.zeros(2, dtype=torch.int64))
        self.resumed = False
        self.told: set[str] = set()

    def _needed(self, kwargs: dict) -> list[str]:
        """The splits this run will use, so that an empty one is an error before anything is computed."""
        if self.mode == "evaluate":
            return [kwargs.get("evaluate_split", "test")]
        runner = kwargs.get("runner", {})
        return [runner.get("train_dataloader", "train"), *runner.get("eval_dataloaders", [])]

    def get_extra_state(self) -> dict:
        return {"classes": list(self.corpus.classes)}

    def set_extra_state(self, state: dict) -> None:
        """SaatError where the weights were trained for other classes than the corpus has."""
        self.resumed = True
        ours, theirs = self.corpus.classes, state["classes"]
        if ours != theirs:
            raise SaatError(
                f"{self.probe}: the checkpoint knows {len(theirs)} classes ({', '.join(theirs[:3])} …), the corpus has "
                f"{len(ours)} ({', '.join(ours[:3])} …): use the corpus, the splits and the labels it was trained with"
            )

    def get_dataloader(self, split: str, epoch: int = 0) -> Batches:
        """Batches of a split (S3PRL interface): to train, shuffled by (seed, epoch); to evaluate, sorted by length."""
        dataset = AudioDataset(self.corpus, self.corpus.split(split))
        workers = self.datarc.num_workers
        if not self.training:
            batches = eval_batches(dataset.utterances, self.datarc.eval_batch_size)
            return Batches(dataset, batches, workers, self.told)
        batches = shard(train_batches(len(dataset), self.datarc.train_batch_size, self.seed, epoch))
        # S3PRL resumes at the epoch it was in; the batches of it that were already seen are not drawn again.
        again = self.resumed and int(self.position[0]) == epoch
        first = min(int(self.position[1]), len(batches)) if again else 0
        self.resumed = False

        def started(number: int) -> None:
            self.position.copy_(torch.tensor([epoch, number]))

        return Batches(dataset, batches, workers, self.told, first, started)

    def forward(
        self, split: str, features: list[Tensor], labels: list[Tensor], records: dict[str, list], **kwargs
    ) -> Tensor:
        """The batch's loss (S3PRL interface).

        Args:
            features: B tensors (T_b, D), unpadded.
            labels: B tensors, () a speaker or (T_b,) phones.
            records: what `log_records` gets; sums are added.
        """
        outcome = self.head(features, [label.to(features[0].device) for label in labels])
        record(records, outcome, len(features), sum(map(len, features)), len(self.corpus.classes))
        return outcome.loss

    def log_records(self, split: str, records: dict[str, list], logger: Any, global_step: int, **kwargs) -> list[str]:
        """Write what was recorded to TensorBoard and log.log (S3PRL interface).

        Returns: the name of the checkpoint to save, where dev accuracy is the best so far.
        """
        majority = self.corpus.majority(self.kind.pooled) if self.mode == "evaluate" else None
        summary = summarise(records, majority)
        accuracy, loss = summary["accuracy"], summary["loss"]
        logger.add_scalar(f"{self.probe}/{split}-accuracy", accuracy, global_step=global_step)
        logger.add_scalar(f"{self.probe}/{split}-loss", loss, global_step=global_step)
        best = split == "dev" and self.mode == "train" and bool(torch.tensor(accuracy) > self.best_dev.cpu())
        if best:
            self.best_dev.fill_(accuracy)
        step = self._trained_steps() if self.mode == "evaluate" else global_step
        line = f"{self.probe}/{split}|step:{step}|accuracy:{accuracy:.4f}|loss:{loss:.4f}" + ("|best" if best else "")
        with (self.expdir / "log.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line)
        if self.mode == "evaluate":
            result = {"probe": self.probe, "split": split, **summary, "classes": len(self.corpus.classes), "step": step}
            text = json.dumps(result, indent=2) + "\n"
            (self.expdir / f"accuracy-{split}.json").write_text(text, encoding="utf-8")
        return [f"best-states-{split}.ckpt"] if best else []

    def _trained_steps(self) -> int:
        """The steps of the checkpoint that is evaluated; S3PRL does not say."""
        if not self.init_ckpt:
            return 0
        return int(torch.load(self.init_ckpt, map_location="cpu", weights_only=True, mmap=True).get("Step", 0))


def new_records() -> dict[str, list]:
    """Empty records, as S3PRL's runner makes them."""
    return defaultdict(list)
