"""The training loop: steps, logs, checkpoints; stops between two steps, and goes on as if it had not."""

import math
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from tqdm import tqdm

from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.data import Batch
from saat.pretrain.draws import DROPOUT, draw
from saat.pretrain.optimizer import learning_rate, make_optimizer, set_options
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import Recipe


class Interrupted(KeyboardInterrupt):
    """A signal ended the run between two steps; everything is saved. `signum` is the signal."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Stopper:
    """Turns SIGINT and SIGTERM into a request that the loop looks at between steps; a second one acts at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _request(self, signum: int, frame: object) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Trainer:
    """Pre-trains one model.

    Args:
        expert: the model and its data, on its device.
        recipe: how.
        expdir: where checkpoints and logs go.
        args: what the command line said, kept in the checkpoints.
        states: a checkpoint to go on from.

    Errors: SaatError when `states` does not fit, the disk is full, or (with strict) audio cannot be read.
    """

    def __init__(
        self,
        expert: UpstreamPretrainExpert,
        recipe: Recipe,
        expdir: Path,
        args: dict[str, Any],
        states: dict[str, Any] | None = None,
    ):
        self.expert, self.recipe, self.expdir, self.args = expert, recipe, expdir, args
        self.runner = recipe.runner
        self.total_steps = total_steps(expert, recipe)
        self.optimizer = make_optimizer(expert.model, recipe.optimizer)
        self.parameters = list(expert.model.parameters())
        self.step = 0  # steps done
        self.skipped_steps = 0  # of these, how many had a gradient that was not finite
        self.losses = [0.0, 0]  # sum and number of the losses since the last log
        self.saved_step = 0  # the untrained model is not worth a file
        self.fingerprint = expert.corpus.fingerprint()
        if states is not None:
            self._restore(states)

    def train(self, progress: bool = True) -> Path:
        """Trains up to the last step. Returns the last checkpoint. Errors: Interrupted, after saving."""
        prefix = f"{self.expert.config.upstream}/train-"
        batches = self._batches()
        self.expert.train()
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=self.expert.config.upstream,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file needs fewer lines than a terminal
            disable=not progress,
        )
        with Stopper() as stopper, bar, SummaryWriter(str(self.expdir), purge_step=self.step + 1) as logger:
            while self.step < self.total_steps and stopper.signum is None:
                loss, norm, records = self._one_step(batches)
                lr = self.optimizer.param_groups[0]["lr"]
                bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.2e}", refresh=False)
                bar.update()
                if math.isfinite(loss):
                    self.losses = [self.losses[0] + loss, self.losses[1] + 1]
                if self.step % self.runner.log_step == 0 or self.step == self.total_steps:
                    logger.add_scalar(f"{prefix}loss", self.losses[0] / max(self.losses[1], 1), self.step)
                    logger.add_scalar(f"{prefix}lr", lr, self.step)
                    logger.add_scalar(f"{prefix}gradient-norm", norm, self.step)
                    self.expert.log_records(records, logger, prefix, self.step)
                    self.losses = [0.0, 0]
                if self.step % self.runner.save_step == 0:
                    self._save()
            self._save()
        if self.skipped_steps:
            print(
                f"{self.skipped_steps} of {self.step} steps changed nothing: their gradient was not finite",
                file=sys.stderr,
            )
        if stopper.signum is not None and self.step < self.total_steps:
            name = signal.Signals(stopper.signum).name
            raise Interrupted(
                f"{name}: stopped after step {self.step} of {self.total_steps}, which is saved in {self.expdir}: "
                "go on with the same command and -a",
                stopper.signum,
            )
        return experiment.checkpoint_path(self.expdir, self.step)

    def _batches(self) -> Iterator[Batch]:
        parts = self.runner.gradient_accumulate_steps
        left = self.total_steps - self.step
        return iter(self.expert.get_train_dataloader(self.step * parts, left * parts))

    def _one_step(self, batches: Iterator[Batch]) -> tuple[float, float, dict[str, Any]]:
        """One update of the weights. Returns the loss, the gradient's norm, and what is to be logged."""
        step = self.step + 1
        parts = [next(batches) for _ in range(self.runner.gradient_accumulate_steps)]
        for part in parts:
            self.expert.report(part)
        readable = [part for part in parts if len(part.numbers)] or parts[:1]
        # The loss is normalised by the masked elements of the whole step, which are known from the lengths.
        elements = sum(self.expert.masked_elements(part) for part in readable)
        # Dropout too is a function of the seed and the step, so no state of a generator has to be kept.
        torch.manual_seed(draw(self.expert.seed, DROPOUT, step, 0))
        loss, records = 0.0, {}
        for part in readable:
            share, records = self.expert(part, records, step, self.runner.log_step, elements=elements)
            share.backward()
            loss = loss + share.detach()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.runner.gradient_clipping))
        set_options(self.optimizer, self.recipe.optimizer, learning_rate(step, self.total_steps, self.recipe.optimizer))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped_steps += 1
        self.expert.on_before_zero_grad()
        self.optimizer.zero_grad()
        self.step = step
        return float(loss), norm, records

    def _save(self) -> None:
        if self.step == self.saved_step:
            return
        states = {
            "Optimizer": self.optimizer.state_dict(),
            # The learning rate is a function of the step: this is for people and for other programs.
            "Scheduler": {
                "step": self.step,
                "total_steps": self.total_steps,
                "lr": learning_rate(self.step, self.total_steps, self.recipe.optimizer),
            },
            "Step": self.step,
            "Epoch": self.step * self.expert.crops.total_batch / len(self.expert.corpus.paths),
            "Skipped_Steps": self.skipped_steps,
            "Losses": self.losses,
            "Corpus": {"utterances": len(self.expert.corpus.paths), "fingerprint": self.fingerprint},
            "Args": self.args,
            "Config": self.recipe.to_dict(),
        }
        states = self.expert.add_state_to_save(states)
        experiment.save(self.expdir, self.step, states, self.runner.max_keep)
        self.saved_step = self.step

    def _restore(self, states: dict[str, Any]) -> None:
        self.expert.load_model(states)
        before, now = states["Config"]["optimizer"]["name"], self.recipe.optimizer.name
        if before != now:
            raise SaatError(f"the checkpoint has the state of {before}, {now} cannot go on from it")
        try:
            self.optimizer.load_state_dict(states["Optimizer"])
        except (ValueError, KeyError) as error:
            raise SaatError(f"the optimizer's state in the checkpoint does not fit: {error}") from error
        self.step = self.saved_step = states["Step"]
        self.skipped_steps = states.get("Skipped_Steps", 0)
        self.losses = states.get("Losses", self.losses)
        known = states.get("Corpus", {})
        if known.get("fingerprint") != self.fingerprint:
            print(
                f"the corpus has changed since the checkpoint ({known.get('utterances')} utterances then, "
                f"{len(self.expert.corpus.paths)} now): training goes on, with other crops than it would have had",
                file=sys.stderr,
            )


def total_steps(expert: UpstreamPretrainExpert, recipe: Recipe) -> int:
    """`runner.total_steps`, or as many steps as `runner.n_epochs` take where that is positive."""
    if recipe.runner.n_epochs <= 0:
        return recipe.runner.total_steps
    return -(-recipe.runner.n_epochs * len(expert.corpus.paths) // expert.crops.total_batch)
