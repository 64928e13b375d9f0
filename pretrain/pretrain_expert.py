"""What S3PRL's pre-training runner drives: the data, the model and the loss of one variant."""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saat.errors import SaatError
from saat.pretrain import data as crops
from saat.pretrain.device import autocast
from saat.pretrain.draws import HASH, draws
from saat.pretrain.held_out import HeldOut, split
from saat.pretrain.images import attention_maps, maps_image, spectrogram_image
from saat.pretrain.manifest import load_corpus
from saat.pretrain.masking import mask_tokens, num_chosen
from saat.pretrain.model import frames, new_model, target_bands, target_dim
from saat.pretrain.recipe import DataConfig, data_config
from saat.upstream.attention import REGISTRY, variant
from saat.upstream.checkpoint import load_weights
from saat.upstream.config import ModelConfig, model_config, read_yaml
from saat.upstream.features import Features

SPECTROGRAMS = ("mask_spec", "pred_spec", "true_spec")  # S3PRL's names


class UpstreamPretrainExpert(nn.Module):
    """S3PRL's interface of a pre-training expert; our own loop drives it as well.

    Args:
        datarc: the section `pretrain_expert.datarc` of a recipe.
        upstream_config: a model config: a YAML file, its contents (as in a checkpoint), or typed.
        device: where the data is sent; the caller moves the module itself there.
        multi_gpu: S3PRL's DataParallel, which is not supported.
        seed: of the initial weights, the data's order, crops, masks and dropout.
        accumulate: batches (of datarc.train_batch_size) that make a step.
        share: (rank, size): which part of each batch is this process's.
        precision: of matrix products.
        skipped_file: where unusable audio files are listed, when there are any.

    Errors: SaatError for an unknown key, a corpus without usable audio, a variant with nothing to train.
    """

    def __init__(
        self,
        datarc: dict | DataConfig,
        upstream_config: str | dict | ModelConfig,
        device: str = "cuda",
        multi_gpu: bool = False,
        *,
        seed: int = 1337,
        accumulate: int = 1,
        share: tuple[int, int] = (0, 1),
        precision: str = "float32",
        skipped_file: Path | None = None,
        **kwargs,
    ):
        super().__init__()
        if multi_gpu:
            raise SaatError("--multi_gpu (DataParallel) is not supported: run without it")
        self.datarc = datarc if isinstance(datarc, DataConfig) else data_config(datarc, "datarc")
        self.config = _typed_model(upstream_config)
        self.device = device
        self.seed = seed
        self.precision = precision
        self.skipped_file = skipped_file
        self._named: set[str] = set()  # unreadable files already reported

        audio = self.config.audio
        if not self.datarc.corpus:
            raise SaatError("no corpus: pass --corpus FOLDER… (config.pretrain_expert.datarc.corpus)")
        corpus = load_corpus(
            self.datarc.corpus, audio.stride, self.datarc.splits, self.datarc.strict, skipped_file, self.datarc.root
        )
        if self.datarc.held_out >= len(corpus.paths):
            raise SaatError(
                f"datarc.held_out: {self.datarc.held_out} of {len(corpus.paths)} utterances leaves none to train on"
            )
        self.corpus, held_out = split(corpus, self.datarc.held_out, seed)
        batch_size = self.datarc.train_batch_size
        if batch_size < share[1]:
            raise SaatError(
                f"datarc.train_batch_size is {batch_size} for {share[1]} processes: each needs at least one crop"
            )
        self.crops = crops.Crops(
            self.corpus, self.config, batch_size, batch_size * accumulate, seed, share, self.datarc.cache_gb
        )
        self.held_out = HeldOut(held_out, self.config, -(-batch_size // share[1]), seed)

        self.features = Features(audio)
        self.target = Features(audio, kind="linear") if self.config.task.target == "linear" else None
        self.model = new_model(self.config, seed)

    # S3PRL's interface

    def get_train_dataloader(self, first: int = 0, count: int | None = None) -> DataLoader:
        """Batches `first` up to first + count of the endless sequence; an epoch a pass, when no count is given."""
        count = len(self.crops) if count is None else count
        pin = torch.device(self.device).type == "cuda"
        return crops.loader(self.crops, first, count, self.datarc.num_workers, pin)

    def forward(
        self,
        data: crops.Batch,
        records: dict[str, Any] | None = None,
        global_step: int = 0,
        log_step: int = 1000,
        elements: float | None = None,
        model: nn.Module | None = None,
        **kwargs,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch.

        Args:
            data: from `get_train_dataloader`.
            records: filled with three spectrograms, (3, bands, frames) images, when global_step is a multiple of
                log_step.
            elements: what the sum of absolute errors is divided by: the masked elements of the whole step, where it is
                computed in parts; by default those of this batch.
            model: what computes it, where that is not `self.model` but something around it.

        Returns:
            loss, a scalar; records.
        """
        records = defaultdict(list) if records is None else records
        self.report(data)
        if len(data.numbers) == 0:
            raise SaatError(f"no audio of a batch can be read: is the corpus still there? {data.problems[0][1]}")
        with torch.no_grad():
            wavs = data.waveforms(self.device)
            features, lengths = self.features(wavs)
            target = features if self.target is None else self.target(wavs)[0]
            masked, chosen = mask_tokens(features, lengths, data.numbers, self.seed, self.config.task)
        seeds = draws(self.seed, HASH, data.numbers, torch.zeros(1, dtype=torch.int64))[:, 0]
        with autocast(self.device, self.precision):
            errors, hidden = (model or self.model)(masked, lengths, chosen, target, seeds)
        if global_step % log_step == 0:
            self._record(records, masked[0], hidden[0].to(target.dtype), target[0], int(lengths[0]))
        return errors / (self.masked_elements(data) if elements is None else elements), records

    def load_model(self, init_ckpt: dict) -> None:
        """The weights of a checkpoint's states. Errors: SaatError when they do not fit."""
        load_weights(self.model.Transformer, init_ckpt["Transformer"], "the checkpoint's Transformer")
        load_weights(self.model.SpecHead, init_ckpt["SpecHead"], "the checkpoint's SpecHead")

    def add_state_to_save(self, all_states: dict) -> dict:
        """Adds the weights, and the config that rebuilds the model."""
        all_states["Transformer"] = self.model.Transformer.state_dict()
        all_states["SpecHead"] = self.model.SpecHead.state_dict()
        all_states["Upstream_Config"] = self.config.to_dict()
        return all_states

    def on_before_zero_grad(self) -> None:
        """Nothing to do."""

    def log_records(self, records: dict, logger: Any, prefix: str, global_step: int, **kwargs) -> None:
        """The spectrograms to TensorBoard."""
        for name in SPECTROGRAMS:
            if name in records:
                logger.add_image(f"{prefix}{name}", records[name], global_step=global_step)

    # What our own loop asks besides

    def masked_elements(self, data: crops.Batch) -> int:
        """Values the loss of a batch sums over; known without computing anything."""
        return num_chosen(data.lengths(self.config), self.config.task) * target_dim(self.config)

    def tokens(self, data: crops.Batch) -> int:
        """Tokens of a batch, without padding."""
        return int(data.lengths(self.config).sum())

    def silence(self) -> crops.Batch:
        """A batch of one token, for a process that has none to compute on."""
        stride = self.config.audio.stride
        return crops.Batch(torch.zeros(1, dtype=torch.int64), torch.zeros(1, stride), torch.tensor([stride]), [])

    @torch.no_grad()
    def held_out_errors(self, rank: int = 0, size: int = 1) -> tuple[float, int]:
        """On this process's held-out utterances: the sum of absolute errors, and over how many elements."""
        for batch in self.held_out.batches(rank, size):
            self.report(batch)
        batches = [batch for batch in self.held_out.batches(rank, size) if len(batch.numbers)]
        errors = sum(float(self(batch, global_step=1, log_step=2, elements=1)[0]) for batch in batches)
        return errors, sum(map(self.masked_elements, batches))

    @torch.no_grad()
    def attention_images(self) -> dict[str, np.ndarray]:
        """The attention maps of one utterance: the first held-out one, else the first of the corpus."""
        source = (
            self.held_out if self.held_out.corpus.paths else HeldOut(self.corpus.part([0]), self.config, 1, self.seed)
        )
        readable = [batch for batch in source.batches() if len(batch.numbers)]
        if not readable:
            return {}
        features = self.features(readable[0].waveforms(self.device)[:1])[0][0]
        limit = self.config.transformer.max_length
        return {"attention": maps_image(attention_maps(self.model.Transformer, features[:limit]))}

    def report(self, data: crops.Batch) -> None:
        """Names each file that could not be read, once. Errors: SaatError with datarc.strict."""
        for path, problem in data.problems:
            if path in self._named:
                continue
            self._named.add(path)
            if self.datarc.strict:
                raise SaatError(f"{problem} (strict)")
            print(f"left out: {problem}", file=sys.stderr)
            # The list is a convenience: a full disk must not end the run here.
            if self.skipped_file is not None:
                with contextlib.suppress(OSError), self.skipped_file.open("a", encoding="utf-8") as file:
                    file.write(f"{problem}\n")

    @torch.no_grad()
    def _record(self, records: dict, masked: Tensor, hidden: Tensor, target: Tensor, length: int) -> None:
        mels, bands = self.config.audio.n_mels, target_bands(self.config)
        shown = [(masked[:length], mels), (self.model.SpecHead(hidden[:length]), bands), (target[:length], bands)]
        for name, (tokens, height) in zip(SPECTROGRAMS, shown, strict=True):
            records[name] = spectrogram_image(frames(tokens, self.config.audio.stack, height))


def _typed_model(upstream_config: str | dict | ModelConfig) -> ModelConfig:
    if isinstance(upstream_config, ModelConfig):
        config = upstream_config
    else:
        where = "the model config" if isinstance(upstream_config, dict) else str(upstream_config)
        values = upstream_config if isinstance(upstream_config, dict) else read_yaml(upstream_config)
        if "upstream" not in values:
            raise SaatError(f"{where}: no key 'upstream': add the variant's name, one of {', '.join(REGISTRY)}")
        config = model_config(values["upstream"], (values, where))
    if variant(config.upstream).attention is None:
        raise SaatError(
            f"{config.upstream} has nothing to train, it is the input features themselves: "
            "give it to run_downstream.py as it is"
        )
    return config
