"""Dropout whose mask costs a CPU less than half of torch's."""

import torch
from torch import Tensor, nn

STEPS = 2**16  # the probability is rounded to a multiple of one in so many


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU a random word of 64 bits decides about four values, where torch draws one for each."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        dropped = round(self.p * STEPS)
        if x.device.type != "cpu" or not self.training or not 0 < dropped < STEPS or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - STEPS // 2
        return x * keep.to(x.dtype).mul_(STEPS / (STEPS - dropped))
