"""The optimizer and its schedule (SPEC section 3)."""

import math
from dataclasses import replace

import torch
from torch import nn

from saat.pretrain.recipe import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """LAMB or AdamW, without weight decay on biases, norms and R.

    LAMB (You et al., 2019, version 3, without bias correction, as S3PRL's) has the decay inside the trust ratio.
    """
    groups = [{**group, **options} for group, options in zip(_groups(model, config), _options(config), strict=False)]
    if config.name == "adamw":
        return torch.optim.AdamW(groups)
    from pytorch_optimizer import Lamb

    # Without adam_debias the package divides the rate by 1 - beta1^t: ten times too much at the first step.
    return Lamb(groups, weight_decouple=False, adam_debias=True)


def set_options(optimizer: torch.optim.Optimizer, config: OptimizerConfig, lr: float) -> None:
    """What the config says, whatever was loaded from a checkpoint: lets `-o` win on resume."""
    for group, options in zip(optimizer.param_groups, _options(replace(config, lr=lr)), strict=False):
        group.update(options)


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The rate of a step, 1 to total_steps: up to lr over the warm-up, then down towards zero, along a line or half a
    cosine; the step after the last one would have zero. No step has."""
    warmup = int(config.warmup_proportion * total_steps)
    if step <= warmup:
        return config.lr * step / warmup
    left = max(0, total_steps + 1 - step) / (total_steps - warmup)  # from 1 to 0
    return config.lr * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Those with decay, those without, and R by itself where its rate is another."""
    decayed, others, fixed = [], [], []
    for name, parameter in model.named_parameters():
        own_name = name.rpartition(".")[2]
        if own_name == "R":
            (others if config.R_lr_scale == 1 else fixed).append(parameter)
        else:
            (others if parameter.dim() < 2 or "bias" in own_name else decayed).append(parameter)
    return [{"params": group} for group in (decayed, others, *([fixed] if fixed else []))]


def _options(config: OptimizerConfig) -> list[dict]:
    """Of the groups, in their order."""
    shared = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    plain = {**shared, "weight_decay": 0.0}
    return [{**shared, "weight_decay": config.weight_decay}, plain, {**plain, "lr": config.lr * config.R_lr_scale}]
