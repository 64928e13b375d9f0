"""The weights of S3PRL's own transformers (`s3prl.upstream.mockingjay.model`) under our names, and back."""

from torch import Tensor

from saat.errors import SaatError

OURS_FROM_THEIRS = {
    "input.projection": "input_representations.spec_transform",
    "input.norm": "input_representations.LayerNorm",
    "layer.attention.query": "attention.self.query",
    "layer.attention.key": "attention.self.key",
    "layer.attention.value": "attention.self.value",
    "layer.output": "attention.output.dense",
    "layer.attention_norm": "attention.output.LayerNorm",
    "layer.intermediate": "intermediate.dense",
    "layer.feed_forward": "output.dense",
    "layer.norm": "output.LayerNorm",
}


def _names(num_layers: int, share_layers: bool) -> list[tuple[str, str, int]]:
    """(our name, S3PRL's name, layer) of every weight; a shared one appears once a layer."""
    names = []
    for ours, theirs in OURS_FROM_THEIRS.items():
        for part in ("weight", "bias"):
            if not ours.startswith("layer."):
                names.append((f"{ours}.{part}", f"{theirs}.{part}", 0))
                continue
            for i in range(num_layers):
                own = ours if share_layers else ours.replace("layer.", f"layer.{i}.", 1)
                names.append((f"{own}.{part}", f"encoder.layer.{i}.{theirs}.{part}", i))
    return names


def from_s3prl(states: dict[str, Tensor], num_layers: int = 1, share_layers: bool = True) -> dict[str, Tensor]:
    """The state dict of a `saat_qk` encoder with the weights of S3PRL's `TransformerModel`.

    Args:
        states: S3PRL's, as in `Transformer` of its checkpoints.
        num_layers: how many layers it has.
        share_layers: its `share_layer`, our `transformer.share_layers`.

    Errors: SaatError when a weight is missing or unknown, or layers that should be shared differ.
    """
    # TensorFlow's names, which S3PRL's oldest checkpoints have.
    states = {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in states.items()}
    if share_layers:
        num_layers = len({name.split(".")[2] for name in states if name.startswith("encoder.layer.")})
    names = _names(num_layers, share_layers)
    missing = [theirs for _, theirs, _ in names if theirs not in states]
    unknown = sorted(states.keys() - {theirs for _, theirs, _ in names})
    if missing or unknown:
        raise SaatError(
            f"not the weights of S3PRL's transformer with {num_layers} layers: missing {missing[:2]}, "
            f"unknown {unknown[:2]}"
        )
    found: dict[str, Tensor] = {}
    for ours, theirs, _ in names:
        if ours in found and not found[ours].equal(states[theirs]):
            raise SaatError(
                f"{theirs} differs from layer 0: only models with share_layer: True have one set of weights"
            )
        found.setdefault(ours, states[theirs])
    return found


def to_s3prl(states: dict[str, Tensor], num_layers: int, share_layers: bool = True) -> dict[str, Tensor]:
    """The inverse of `from_s3prl`; shared weights appear under the name of every layer, as S3PRL saves them."""
    return {theirs: states[ours] for ours, theirs, _ in _names(num_layers, share_layers)}
