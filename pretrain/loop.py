"""The training loop: steps, logs, checkpoints; stops between two steps, and goes on as if it had not."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.data import Batch
from saat.pretrain.distributed import World
from saat.pretrain.draws import DROPOUT, draw
from saat.pretrain.optimizer import learning_rate, make_optimizer, set_options
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import Recipe
from saat.pretrain.stop import Interrupted, Stopper
from saat.pretrain.watch import Watch


class Step(NamedTuple):
    """What became of one step, of all processes together but for `waited`."""

    loss: float
    norm: float  # of the gradient
    records: dict[str, Any]  # spectrograms, at some steps
    tokens: float
    samples: float  # of audio
    waited: float  # seconds, for data
    stopped: bool  # whether any process was asked to stop


class Trainer:
    """Pre-trains one model.

    Args:
        expert: the model and its data, on its device.
        recipe: how.
        expdir: where checkpoints and logs go.
        args: what the command line said, kept in the checkpoints.
        states: a checkpoint to go on from.
        world: the processes that train it together.

    Errors: SaatError when `states` does not fit, the disk is full, no gradient is finite any more, or (with strict)
    audio cannot be read.
    """

    def __init__(
        self,
        expert: UpstreamPretrainExpert,
        recipe: Recipe,
        expdir: Path,
        args: dict[str, Any],
        states: dict[str, Any] | None = None,
        world: World | None = None,
    ):
        self.expert, self.recipe, self.expdir, self.args = expert, recipe, expdir, args
        self.world = world or World()
        self.runner = recipe.runner
        self.total_steps = total_steps(expert, recipe)
        self.optimizer = make_optimizer(expert.model, recipe.optimizer)
        half = self.runner.precision == "float16"
        self.scaler = torch.amp.GradScaler(torch.device(expert.device).type, enabled=half)
        self.parameters = list(expert.model.parameters())
        self.step = 0  # steps done
        self.skipped_steps = 0  # of these, how many had a gradient that was not finite …
        self.skipped_in_a_row = 0  # … and how many of the last ones
        self.losses = [0.0, 0]  # sum and number of the losses since the last log
        self.spent = 0.0  # processor seconds since the last log, in the checkpoint that the run goes on from
        self.saved_step = 0  # the untrained model is not worth a file
        self.fingerprint = expert.corpus.fingerprint()
        if states is not None:
            self._restore(states)
        self.model = expert.model
        if self.world.size > 1:
            self.model = DistributedDataParallel(
                expert.model, broadcast_buffers=False, gradient_as_bucket_view=True, device_ids=None
            )

    def train(self, progress: bool = True) -> Path:
        """Trains up to the last step. Returns the last checkpoint. Errors: Interrupted, after saving."""
        batches = self._batches()
        name, is_main = self.expert.config.upstream, self.world.is_main
        self.expert.train()
        stopped = False
        watch = Watch(self.expdir, name, self.step, self.total_steps, progress, is_main, self.spent)
        with Stopper() as stopper, watch:
            while self.step < self.total_steps and not stopped:
                step = self._one_step(batches, stopper)
                loss, stopped = step.loss, step.stopped
                lr = self.optimizer.param_groups[0]["lr"]
                watch.step(loss, lr, step.tokens, step.samples, step.waited)
                if math.isfinite(loss):
                    self.losses = [self.losses[0] + loss, self.losses[1] + 1]
                last = self.step == self.total_steps
                if self.step % self.runner.log_step == 0 or last:
                    mean = self.losses[0] / max(self.losses[1], 1)
                    values = {"loss": mean, "lr": lr, "gradient_norm": step.norm, "skipped_steps": self.skipped_steps}
                    watch.log(self.step, {**values, **watch.rate.values()}, step.records, "train-")
                    self.losses = [0.0, 0]
                    watch.rate.reset()
                if self.step % self.runner.eval_step == 0 or last:
                    self._evaluate(watch)
                if self.step % self.runner.save_step == 0:
                    self._save(watch)
            self._save(watch)
        if is_main:
            print(watch.summary(self.world.size))
        if self.skipped_steps and is_main:
            print(
                f"{self.skipped_steps} of {self.step} steps changed nothing: their gradient was not finite",
                file=sys.stderr,
            )
        if stopped and self.step < self.total_steps:
            signum = stopper.signum or signal.SIGTERM  # another process may have had it
            raise Interrupted(
                f"{signal.Signals(signum).name}: stopped after step {self.step} of {self.total_steps}, which is saved "
                f"in {self.expdir}: go on with the same command and -a",
                signum,
            )
        return experiment.checkpoint_path(self.expdir, self.step)

    def _batches(self) -> Iterator[Batch]:
        parts = self.runner.gradient_accumulate_steps
        left = self.total_steps - self.step
        return iter(self.expert.get_train_dataloader(self.step * parts, left * parts))

    def _one_step(self, batches: Iterator[Batch], stopper: Stopper | None = None) -> Step:
        """One update of the weights."""
        step = self.step + 1
        begin = time.perf_counter()
        parts = [next(batches) for _ in range(self.runner.gradient_accumulate_steps)]
        waited = time.perf_counter() - begin
        for part in parts:
            self.expert.report(part)
        readable = [part for part in parts if len(part.numbers)]
        # The loss is normalised by the masked elements of the whole step, which are known from the lengths.
        counts = [sum(map(count, readable)) for count in (self.expert.masked_elements, self.expert.tokens, samples)]
        elements, tokens, audio = self.world.sum(*counts)
        if elements == 0:
            raise SaatError(f"no audio of a step can be read: is the corpus still there? {parts[0].problems[0][1]}")
        # Dropout too is a function of the seed and the step, so no state of a generator has to be kept.
        torch.manual_seed(draw(self.expert.seed, DROPOUT, step, self.world.rank))
        loss, records = self._backward(readable, elements, step)
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.runner.gradient_clipping))
        set_options(self.optimizer, self.recipe.optimizer, learning_rate(step, self.total_steps, self.recipe.optimizer))
        if math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
        self.scaler.update()
        self.expert.on_before_zero_grad()
        self.optimizer.zero_grad()
        self.step = step
        if self.skipped_in_a_row >= self.runner.max_skipped:
            raise SaatError(self._advice())
        asked = stopper is not None and stopper.signum is not None
        loss, stopped = self.world.sum(loss, asked)
        return Step(loss, norm, records, tokens, audio, waited, bool(stopped))

    def _backward(self, parts: list[Batch], elements: float, step: int) -> tuple[float, dict[str, Any]]:
        """Gradients of this process's parts, summed over the processes. Returns its share of the loss, and records."""
        # A process without audio takes part in the exchange of gradients all the same, with zeros.
        weight = 1.0 if parts else 0.0
        parts = parts or [self.expert.silence()]
        loss, records = 0.0, {}
        for i, part in enumerate(parts):
            exchange = self.world.size == 1 or i == len(parts) - 1
            with nullcontext() if exchange else self.model.no_sync():
                share, records = self.expert(
                    part, records, step, self.runner.log_step, elements=elements, model=self.model
                )
                # DistributedDataParallel averages where the loss is a sum.
                self.scaler.scale(share * (weight * self.world.size)).backward()
            loss = loss + share.detach() * weight
        return float(loss), records

    def _evaluate(self, watch: Watch) -> None:
        """The loss on the held-out utterances, and the attention maps."""
        with watch.left_out():
            self.expert.eval()
            errors, elements = self.world.sum(*self.expert.held_out_errors(self.world.rank, self.world.size))
            values = {"held_out_loss": errors / elements} if elements else {}
            if self.world.is_main:
                watch.log(self.step, values, self.expert.attention_images())
            self.expert.train()

    def _advice(self) -> str:
        kept = list(experiment.checkpoints(self.expdir).values())
        last = f"; the newest checkpoint is {kept[-1]}" if kept else ""
        precision = "" if self.runner.precision == "float32" else " or runner.precision=float32"
        return (
            f"the gradients of {self.skipped_in_a_row} steps in a row, up to step {self.step}, were not finite, so "
            f"nothing is learnt any more: go on from a checkpoint with a lower optimizer.lr{precision}{last}"
        )

    def _save(self, watch: Watch) -> None:
        if self.step == self.saved_step:
            return
        self.saved_step = self.step
        if not self.world.is_main:
            return
        states = {
            "Optimizer": self.optimizer.state_dict(),
            # The learning rate is a function of the step: this is for people and for other programs.
            "Scheduler": {
                "step": self.step,
                "total_steps": self.total_steps,
                "lr": learning_rate(self.step, self.total_steps, self.recipe.optimizer),
            },
            "Scaler": self.scaler.state_dict(),
            "Step": self.step,
            "Epoch": self.step * self.expert.crops.total_batch / len(self.expert.corpus.paths),
            "Skipped_Steps": self.skipped_steps,
            "Skipped_In_A_Row": self.skipped_in_a_row,
            "Losses": self.losses,
            "Processor_Seconds": watch.rate.processor_seconds,
            "Corpus": {
                "utterances": len(self.expert.corpus.paths),
                "hours": self.expert.corpus.hours,
                "fingerprint": self.fingerprint,
            },
            "World": self.world.size,
            "Args": self.args,
            "Config": self.recipe.to_dict(),
        }
        states = self.expert.add_state_to_save(states)
        experiment.save(self.expdir, self.step, states, self.runner.max_keep)

    def _restore(self, states: dict[str, Any]) -> None:
        self.expert.load_model(states)
        before, now = states["Config"]["optimizer"]["name"], self.recipe.optimizer.name
        if before != now:
            raise SaatError(f"the checkpoint has the state of {before}, {now} cannot go on from it")
        try:
            self.optimizer.load_state_dict(states["Optimizer"])
            if states.get("Scaler"):
                self.scaler.load_state_dict(states["Scaler"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise SaatError(f"the optimizer's state in the checkpoint does not fit: {error}") from error
        self.step = self.saved_step = states["Step"]
        self.skipped_steps = states.get("Skipped_Steps", 0)
        self.skipped_in_a_row = states.get("Skipped_In_A_Row", 0)
        self.losses = states.get("Losses", self.losses)
        self.spent = states.get("Processor_Seconds", self.spent)
        known = states.get("Corpus", {})
        if known.get("fingerprint") != self.fingerprint and self.world.is_main:
            print(
                f"the corpus has changed since the checkpoint ({known.get('utterances')} utterances then, "
                f"{len(self.expert.corpus.paths)} now): training goes on, with other crops than it would have had",
                file=sys.stderr,
            )
        if states.get("World", 1) != self.world.size and self.world.is_main:
            print(
                f"{states.get('World', 1)} processes made the checkpoint, {self.world.size} go on: with the same "
                "batches, equal up to rounding and to dropout",
                file=sys.stderr,
            )


def samples(batch: Batch) -> int:
    """Of audio, at 16 kHz."""
    return int(batch.samples.sum())


def total_steps(expert: UpstreamPretrainExpert, recipe: Recipe) -> int:
    """`runner.total_steps`, or as many steps as `runner.n_epochs` take where that is positive."""
    if recipe.runner.n_epochs <= 0:
        return recipe.runner.total_steps
    return -(-recipe.runner.n_epochs * len(expert.corpus.paths) // expert.crops.total_batch)
