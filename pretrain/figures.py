"""What a pre-trained model makes of speech it sees through a mask."""

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from saat.errors import SaatError
from saat.pretrain import experiment
from saat.pretrain.masking import mask_tokens
from saat.pretrain.model import MaskedAcousticModel, frames, target_bands
from saat.upstream import checkpoint
from saat.upstream.audio import read_audio
from saat.upstream.config import ModelConfig, model_config
from saat.upstream.features import Features


@torch.no_grad()
def reconstruct(checkpoint_file: str | Path, wav: Tensor, seed: int = 0) -> tuple[Tensor, ...]:
    """What the model was given, what it made of it, and what there was.

    Args:
        checkpoint_file: a `states-N.ckpt` of run_pretrain.py.
        wav: (samples,), 16 kHz; at most the length of a crop of pre-training is used.
        seed: of the mask; the chosen tokens are always zeroed here.

    Returns:
        masked, reconstructed, true (frames, bands); chosen (frames,), bool; the config.

    Errors: SaatError when the checkpoint cannot be read.
    """
    states = experiment.load(Path(checkpoint_file))
    saved = states["Upstream_Config"]
    config = model_config(saved["upstream"], (saved, f"the config in {checkpoint_file}"))
    model = MaskedAcousticModel(config).eval()
    checkpoint.load_weights(model.Transformer, states["Transformer"], str(checkpoint_file))
    checkpoint.load_weights(model.SpecHead, states["SpecHead"], str(checkpoint_file))
    wav = wav[: config.task.sequence_length * config.audio.hop]
    features, lengths = Features(config.audio)([wav])
    target = features
    if config.task.target == "linear":
        target = Features(config.audio, kind="linear")([wav])[0]
    task = replace(config.task, zero_proportion=1.0, replace_proportion=0.0)
    masked, chosen = mask_tokens(features, lengths, torch.tensor([0]), seed, task)
    predicted = model.SpecHead(model.Transformer(masked, lengths)[-1])
    # The masked input shows the same values as the target, so that the three can be compared.
    shown = target.masked_fill(chosen[..., None], 0.0)
    stack, bands = config.audio.stack, target_bands(config)
    pictures = [frames(tokens[0], stack, bands) for tokens in (shown, predicted, target)]
    return *pictures, chosen[0].repeat_interleave(stack), config


def reconstruction_figure(checkpoint_file: str | Path, wav: str | Path | Tensor, path: str | Path) -> Path:
    """Draws the masked, the reconstructed and the true spectrogram, one below the other, into an image file.

    Args:
        checkpoint_file: a `states-N.ckpt` of run_pretrain.py.
        wav: an audio file, or a waveform (samples,), 16 kHz.
        path: the image; its ending says the format.

    Errors: SaatError when the checkpoint or the audio cannot be read, or the image cannot be written.
    """
    audio = wav if isinstance(wav, Tensor) else read_audio(wav)
    masked, predicted, true, chosen, config = reconstruct(checkpoint_file, audio)
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, sharey=True)
    share = float(chosen.float().mean())
    error = float((predicted - true)[chosen].abs().mean())
    plain = float(true[chosen].abs().mean())
    titles = (
        f"Input, {share:.0%} of the tokens masked (white)",
        f"Reconstruction by {config.upstream}\n"
        f"mean absolute error at the masked tokens (red): {error:.2f}; of predicting the average spectrum: {plain:.2f}",
        "Truth",
    )
    low, high = torch.quantile(true.flatten(), torch.tensor([0.01, 0.99])).tolist()
    hop = config.audio.hop_ms / 1000
    extent = (0.0, len(true) * hop, 0.0, float(true.shape[1]))
    for axis, title, picture in zip(axes, titles, (masked, predicted, true), strict=True):
        values = picture.T.numpy()
        drawn = axis.imshow(
            values, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, interpolation="none"
        )
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel(_band_name(config))
    for begin, end in _runs(chosen):
        axes[0].axvspan(begin * hop, end * hop, color="white", linewidth=0)
        # A mark above the reconstruction shows where it had to be made from the rest.
        axes[1].axvspan(begin * hop, end * hop, ymin=0.97, color="red", linewidth=0)
    axes[-1].set_xlabel("time (s)")
    unit = "log power, normalised per band" if config.audio.cmvn else "log power"
    figure.colorbar(drawn, ax=axes, label=unit, shrink=0.6)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except OSError as problem:
        raise SaatError(f"cannot write {path}: {problem}") from problem
    return path


def _band_name(config: ModelConfig) -> str:
    return "mel band" if config.task.target == "input" else "frequency bin"


def _runs(chosen: Tensor) -> list[tuple[int, int]]:
    """[begin, end) of each run of True."""
    padded = torch.nn.functional.pad(chosen.int(), (1, 1)).diff()
    begins, ends = (padded == 1).nonzero()[:, 0], (padded == -1).nonzero()[:, 0]
    return list(zip(begins.tolist(), ends.tolist(), strict=True))
