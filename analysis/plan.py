"""How long pre-training will take: counted operations, measured memory, and an assumed speed of the machine.

`python -m saat.analysis.plan --gpus 8 --tflops 60` prints, for each upstream, the operations of a step (counted by
torch in one crop's forward and backward pass), the memory a crop needs, and the hours of 100k steps at that speed.
"""

import argparse
from collections.abc import Callable

import torch

from saat.analysis.measure import operations
from saat.pretrain.device import PRECISIONS, autocast
from saat.pretrain.masking import mask_tokens
from saat.pretrain.model import MaskedAcousticModel, target_dim
from saat.pretrain.recipe import load_recipe
from saat.upstream.attention import REGISTRY
from saat.upstream.config import model_config

STATE_BYTES = 16  # a parameter: itself, its gradient and two moments, in float32


def one_pass(upstream: str, recipe: str, precision: str) -> tuple[Callable[[], torch.Tensor], MaskedAcousticModel, int]:
    """A function that computes the loss of one whole crop; the model; the crop's tokens."""
    config = model_config(upstream, (load_recipe(recipe).model, recipe))
    tokens = config.task.sequence_length // config.audio.stack
    torch.manual_seed(0)
    model = MaskedAcousticModel(config).train()
    features = torch.randn(1, tokens, config.audio.input_dim)
    lengths, numbers = torch.tensor([tokens]), torch.tensor([0])
    masked, chosen = mask_tokens(features, lengths, numbers, 0, config.task)
    target = torch.randn(1, tokens, target_dim(config))

    def loss() -> torch.Tensor:
        with autocast("cpu", precision):
            return model(masked, lengths, chosen, target, numbers)[0]

    return loss, model, tokens


def count(upstream: str, recipe: str, precision: str) -> dict[str, float]:
    """Operations (2 a multiply-add) and bytes saved for the backward pass of one crop; parameters."""
    loss, model, tokens = one_pass(upstream, recipe, precision)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    kept = []  # so that no storage is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept.append(tensor)
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "flops": operations(lambda: loss().backward()),
        "saved_bytes": sum(saved.values()),
        "parameters": parameters,
        "tokens": tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name, entry in REGISTRY.items() if entry.attention is not None]
    parser.add_argument("--upstreams", nargs="+", default=["saat_qk", "saat_xbox", "saat_ours"], choices=known)
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tflops", type=float, default=60.0, help="operations a GPU really does in a second, in 10^12")
    options = parser.parse_args()
    batch = load_recipe(options.recipe).datarc.train_batch_size
    each = -(-batch // options.gpus)
    print(f"{options.recipe}, {options.precision}: {batch} crops a step, {each} a GPU; {options.gpus} GPUs")
    print(f"assumed: {options.tflops:g} TFLOP/s a GPU")
    print("upstream  parameters M  TFLOP a step  MB a crop  GB a GPU  hours for 100k steps")
    for upstream in options.upstreams:
        found = count(upstream, options.recipe, options.precision)
        step = found["flops"] * batch
        memory = found["saved_bytes"] * each + found["parameters"] * STATE_BYTES
        # The GPU with the most crops sets the pace.
        hours = found["flops"] * each / (options.tflops * 1e12) * 100_000 / 3600
        print(
            f"{upstream}  {found['parameters'] / 1e6:.1f}  {step / 1e12:.2f}  {found['saved_bytes'] / 1e6:.0f}  "
            f"{memory / 1e9:.1f}  {hours:.1f}"
        )


if __name__ == "__main__":
    main()
