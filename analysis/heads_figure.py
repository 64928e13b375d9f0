"""The heads of fixed weights before and after pre-training (the paper's Figure 2)."""

from pathlib import Path

import torch
from torch import Tensor

from saat.analysis.drawing import BRIGHTNESS, canvas, show_map, write
from saat.errors import SaatError
from saat.pretrain.experiment import initial_weights
from saat.upstream import checkpoint
from saat.upstream.attention import variant
from saat.upstream.attention.fixed import FixedWeights
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert


def patterns_figure(ckpt: str | Path, path: str | Path) -> dict[str, list[float]]:
    """Draws softmax(R) of every head before and after pre-training, and says how alike the two are.

    Args:
        ckpt: a checkpoint of a variant with fixed weights (`saat_ours`, `saat_syn_random`).
        path: the image; its ending says the format.

    Returns: the numbers of `compare`, a list with one number a head each.

    Errors: SaatError for a checkpoint of another variant, or when the image cannot be written.
    """
    before, after = initial_and_trained(ckpt)
    draw_heads(before, after, path)
    return compare(before, after)


def initial_and_trained(path: str | Path) -> tuple[Tensor, Tensor]:
    """softmax(R) at the start of a pre-training and in its checkpoint, each (A, L, L).

    Where layers have weights of their own, those of the first.

    Errors: SaatError for a checkpoint of a variant whose weights depend on the input.
    """
    states = checkpoint.load(path)
    saved = states["Upstream_Config"]
    config = model_config(saved.get("upstream"), (saved, f"the config in {path}"))
    attention = variant(config.upstream).attention
    if attention is None or not issubclass(attention, FixedWeights):
        raise SaatError(f"{path} is of {config.upstream}, which has no fixed weights: give one of saat_ours")
    encoder = AudioAlbert(config)
    first = encoder.layers()[0].attention
    # R starts from its config's seed, whatever the run's; or from a file.
    start = initial_weights(states)
    if start is not None:
        checkpoint.load_weights(encoder, start, str(path))
    before = first.R.detach().softmax(-1)
    checkpoint.load_weights(encoder, states["Transformer"], str(path))
    return before, first.R.detach().softmax(-1)


def compare(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """How alike two sets of maps are, head by head. Both (A, L, L), rows summing to 1.

    Returns, each a list of A numbers:
        correlation: Pearson's, over all entries of the two maps.
        kl: KL(before || after) of a row, nats, mean over rows: what it costs to take the trained row for the initial.
        kl_reverse: KL(after || before).
        moved: the share of a row's weight that lies elsewhere after training, mean over rows.
    """
    b, a = before.double(), after.double()
    stacked = torch.stack([b.flatten(1), a.flatten(1)], 1)  # (A, 2, L L)
    return {
        "correlation": [float(torch.corrcoef(pair)[0, 1]) for pair in stacked],
        "kl": divergence(b, a).tolist(),
        "kl_reverse": divergence(a, b).tolist(),
        "moved": mass_moved(b, a).tolist(),
    }


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(A,) KL(p || q) of a row in nats, mean over rows; 0 log 0 is 0. Both (A, L, L)."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1).mean(-1)


def mass_moved(before: Tensor, after: Tensor) -> Tensor:
    """(A,) the share of a row's weight that lies elsewhere after training (total variation), mean over rows."""
    return (after - before).abs().sum(-1).mean(-1) / 2


def draw_heads(before: Tensor, after: Tensor, path: str | Path) -> Path:
    """A grid: a column a head, the start above, the pre-trained weights below. (A, L, L) twice; writes an image."""
    heads = len(before)
    numbers = compare(before, after)
    figure = canvas(1.1 * heads + 0.6, 3.4)
    axes = figure.subplots(2, heads, squeeze=False, sharex=True, sharey=True)
    for row, (name, weights) in enumerate((("before", before), ("after", after))):
        for head in range(heads):
            show_map(axes[row, head], weights[head])
        axes[row, 0].set_ylabel(f"{name}\nquery (token)", fontsize=9)
    for head in range(heads):
        axes[0, head].set_title(f"head {head + 1}", fontsize=9)
        r, kl = numbers["correlation"][head], numbers["kl"][head]
        axes[1, head].set_title(f"r {r:.3f}\nKL {kl:.2g}", fontsize=8)
    figure.supxlabel("key (token)", fontsize=9)
    moved = sum(numbers["moved"]) / heads
    figure.suptitle(
        f"softmax(R) before and after pre-training: correlation r of the two, KL(before || after) in nats a row; "
        f"{moved:.1%} of the weight moved\n{BRIGHTNESS}",
        fontsize=9,
    )
    return write(figure, path)
