"""`saat_ours` from data: R is the mean attention map of each head of a pre-trained model, not a pattern by hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saat.analysis.heads import globalness
from saat.analysis.init_from_command import FORMS
from saat.analysis.mean_maps import Averages, average_maps, by_distance, long_enough
from saat.errors import SaatError, did_you_mean
from saat.pretrain.manifest import load_corpus
from saat.pretrain.model import new_model
from saat.pretrain.plan import SEED
from saat.sharing.published import file_sha256, weights_file
from saat.upstream import checkpoint
from saat.upstream.attention import REGISTRY
from saat.upstream.attention.softmax import SharedQK
from saat.upstream.config import SAMPLE_RATE, ModelConfig, model_config
from saat.upstream.encoder import AudioAlbert

SOURCES = ("saat_qk", "saat_q")  # whose queries see every key


def init_from(
    ckpt: str | Path,
    corpus: Sequence[str | Path],
    out: str | Path,
    *,
    splits: str | Path | None = None,
    form: str = "position",
    layer: int | None = None,
    utterances: int | None = None,
    fresh: bool = False,
    seed: int = SEED,
    length: int | None = None,
    force: bool = False,
) -> Path:
    """Writes a checkpoint of `saat_ours`, step 0, whose softmax(R) is the smoothed mean of a model's attention maps.

    Head h gets the mean of head h. P <- (1 - eps) P + eps / L with eps the `smoothing` of `saat_ours`, as for its
    patterns. Where the model's layers share their weights, R is the mean over layers; else each layer gets its own.

    Args:
        ckpt: a pre-trained `saat_qk` or `saat_q`; all weights but R come from it (queries and keys are dropped).
        corpus: folders of audio, .csv, .txt, as in pre-training.
        out: the file to write.
        splits: a list of utterance ids, or a folder with train_split.txt: only these.
        form: `position`: the mean at each query and key; `relative`: the mean at each distance from query to key.
        layer: the maps of this layer alone, the first being 1.
        utterances: how many of the long enough ones, chosen by a hash of their names; None: all.
        fresh: all weights but R are those that a pre-training with `seed` starts from.
        seed: of these.
        length: L, tokens; by default `max_length` of the checkpoint.
        force: overwrite `out`.

    Returns: `out`.

    Errors: SaatError for a checkpoint of another variant, an option out of range, a corpus without a long enough
    utterance, and where `out` exists.
    """
    ckpt, out = Path(ckpt).expanduser(), Path(out).expanduser()
    if form not in FORMS:
        raise SaatError(f"form '{form}': {did_you_mean(form, FORMS)}")
    _check_out(out, force)
    states, source = load_source(ckpt)
    length = source.transformer.max_length if length is None else length
    layers = source.transformer.num_hidden_layers
    if layer is not None and not 1 <= layer <= layers:
        raise SaatError(f"--layer {layer}: {ckpt} has layers 1 to {layers}")
    if length < 1 or (utterances is not None and utterances < 1):
        raise SaatError("--length and --utterances must be at least 1")
    encoder = AudioAlbert(source).eval()
    checkpoint.load_weights(encoder, states["Transformer"], str(ckpt))
    stride = source.audio.stride
    chosen = long_enough(load_corpus(corpus, stride, splits), length, stride, utterances)
    averages = average_maps(encoder, chosen, length)

    maps = averages.maps if form == "position" else by_distance(averages.maps)
    config = _ours(source, length, str(ckpt))
    model = new_model(config, seed)
    if not fresh:
        _copy(model.Transformer, states["Transformer"])
    sets = _a_set_of_weights_each(maps, layer, source.transformer.share_layers)
    for own, mean in zip(model.Transformer.layers(), sets, strict=True):
        own.attention.R.data.copy_(logits(mean, config.attention.smoothing))

    maps_of = f"layer {layer}" if layer else "all layers"
    about = (
        f"{ckpt.name} of {source.upstream}, SHA-256 {file_sha256(weights_file(ckpt))}: R is the mean of the maps of "
        f"{maps_of}, by {form}, over {averages.crops} crops of {length} tokens of {averages.utterances} utterances, "
        f"corpus {chosen.fingerprint()[:16]}; all other weights {f'drawn with seed {seed}' if fresh else 'copied'}"
    )
    made = {"Transformer": model.Transformer.state_dict(), "Upstream_Config": config.to_dict(), "Step": 0}
    if fresh:
        made["SpecHead"] = model.SpecHead.state_dict()
    elif "SpecHead" in states:
        made["SpecHead"] = states["SpecHead"]
    checkpoint.save(out, {**made, "Made_From": about})
    print(report(averages, model.Transformer, length * stride / SAMPLE_RATE, layer))
    return out


def load_source(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """A checkpoint whose attention maps can be averaged, and its config. Errors: SaatError that says why it cannot."""
    states = checkpoint.load(path)
    name = states["Upstream_Config"].get("upstream")
    if name not in SOURCES:
        if name in REGISTRY and not REGISTRY[name].input_dependent:
            why = f"its weights are an R already: run_pretrain.py -u {name} -i {path} starts a new run from it"
        elif name in REGISTRY and REGISTRY[name].attention is None:
            why = "it has no attention"
        elif name in REGISTRY and not issubclass(REGISTRY[name].attention, SharedQK):
            why = "its weights come from the query alone, no key is looked at"
        else:
            why = "the variant limits what a query sees, so a mean would show that and not what it learnt"
        raise SaatError(f"{path} is a checkpoint of {name}: {why}; init-from takes a {' or '.join(SOURCES)}")
    return states, checkpoint.check_model(states, str(path))


def logits(maps: Tensor, smoothing: float) -> Tensor:
    """R whose softmax is P <- (1 - eps) P + eps / L, of maps (…, L, L)."""
    return ((1 - smoothing) * maps + smoothing / maps.shape[-1]).log()


def report(averages: Averages, encoder: AudioAlbert, crop_seconds: float, layer: int | None) -> str:
    """What was averaged, and how sharp each head of softmax(R) is beside a single crop's map."""
    chosen = averages.entropy if layer is None else averages.entropy[layer - 1 : layer]
    R = torch.stack([each.attention.R for each in encoder.layers()]).detach().double()
    mean = globalness(R.softmax(-1)).mean(0)
    lines = [
        f"averaged {averages.crops} crops of {averages.utterances} utterances, "
        f"{averages.crops * crop_seconds / 3600:.2f} h",
        "entropy of a row, and its exponential, as if of so many keys alike:",
        "head   one crop's map   softmax(R)",
    ]
    for head, (one, all_) in enumerate(zip(chosen.mean(0).tolist(), mean.tolist(), strict=True), 1):
        lines.append(f"{head:4d}   {one:5.2f} {math.exp(one):8.1f}   {all_:5.2f} {math.exp(all_):6.1f}")
    return "\n".join([*lines, f"all keys alike: {math.log(R.shape[-1]):.2f}, {R.shape[-1]} keys"])


def _a_set_of_weights_each(maps: Tensor, layer: int | None, shared: bool) -> Tensor:
    """(layers, A, L, L): what R of each layer becomes; the same for all where they share it."""
    if layer is not None:
        return maps[layer - 1].expand_as(maps)
    return maps.mean(0).expand_as(maps) if shared else maps


def _ours(source: ModelConfig, length: int, where: str) -> ModelConfig:
    sizes = {key: value for key, value in source.to_dict().items() if key in ("audio", "transformer", "task")}
    sizes["transformer"]["max_length"] = length
    return model_config("saat_ours", (sizes, f"the config in {where}"))


def _copy(encoder: AudioAlbert, weights: dict[str, Tensor]) -> None:
    """All but queries and keys, which `saat_ours` has none of, and R, which the source has none of."""
    missing, unknown = encoder.load_state_dict(weights, strict=False)
    assert all(name.endswith("attention.R") for name in missing), missing
    assert all(name.split(".")[-2] in ("query", "key") for name in unknown), unknown


def _check_out(out: Path, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        advice = "name a file in it" if out.is_dir() else "pass --force, or another --out"
        raise SaatError(f"--out {out} exists already: {advice}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaatError(f"--out {out}: {error}") from error
