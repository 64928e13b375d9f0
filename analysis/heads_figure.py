"""The heads of fixed weights before and after pre-training (the paper's Figure 2)."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from saat.pretrain.experiment import initial_weights
from saat.upstream import checkpoint
from saat.upstream.attention.fixed import FixedWeights
from saat.upstream.config import model_config
from saat.upstream.encoder import AudioAlbert


def initial_and_trained(path: str | Path) -> tuple[Tensor, Tensor]:
    """softmax(R) at the start of a pre-training and in its checkpoint, each (A, L, L)."""
    states = checkpoint.load(path)
    saved = states["Upstream_Config"]
    encoder = AudioAlbert(model_config(saved["upstream"], (saved, f"the config in {path}")))
    attention = encoder.layers()[0].attention
    assert isinstance(attention, FixedWeights), f"{saved['upstream']} has no fixed weights"
    # R starts from its config's seed, whatever the run's; or from a file.
    start = initial_weights(states)
    if start is not None:
        checkpoint.load_weights(encoder, start, str(path))
    before = attention.R.detach().softmax(-1)
    checkpoint.load_weights(encoder, states["Transformer"], str(path))
    return before, attention.R.detach().softmax(-1)


def draw_heads(before: Tensor, after: Tensor, path: str | Path) -> None:
    """A grid: a column a head, the start above, the pre-trained weights below. (A, L, L) twice; writes a PNG."""
    heads, length, _ = before.shape
    figure = Figure(figsize=(1.35 * heads + 0.8, 3.4), dpi=130, layout="constrained")
    axes = figure.subplots(2, heads, squeeze=False, sharex=True, sharey=True)
    for row, (name, weights) in enumerate((("before", before), ("after", after))):
        for head in range(heads):
            axis = axes[row, head]
            # Each head on its own scale; the root shows what is small beside a diagonal.
            shown = (weights[head] / weights[head].max()).sqrt()
            axis.imshow(shown, cmap="magma", vmin=0, vmax=1, interpolation="none", aspect="equal")
            axis.set_xticks([0, length - 1])
            axis.set_yticks([0, length - 1])
            axis.tick_params(labelsize=6)
            if row == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
        axes[row, 0].set_ylabel(f"{name}\nquery (token)", fontsize=8)
    figure.supxlabel("key (token)", fontsize=8)
    figure.suptitle(
        "softmax(R) before and after pre-training; brightness: square root of the weight over the head's largest; "
        f"moved mass per row: {float(mass_moved(before, after).mean()):.1%} on average",
        fontsize=9,
    )
    figure.savefig(path)


def mass_moved(before: Tensor, after: Tensor) -> Tensor:
    """(A,) the share of a row's weight that lies elsewhere after training (total variation), mean over rows."""
    return (after - before).abs().sum(-1).mean(-1) / 2
