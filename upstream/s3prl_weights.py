"""The weights of S3PRL's own Audio ALBERT (`s3prl.upstream.mockingjay.model`) under our names."""

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


def from_s3prl(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `saat_qk` encoder with the weights of S3PRL's `TransformerModel(share_layer: True)`.

    Errors: SaatError when the layers differ (a Mockingjay or TERA without shared layers).
    """
    first = "encoder.layer.0."
    for name, value in states.items():
        if name.startswith("encoder.layer."):
            own = states[first + name.split(".", 3)[3]]
            if not value.equal(own):
                raise SaatError(
                    f"{name} differs from layer 0: only models with share_layer: True have one set of weights"
                )
    found = {}
    for ours, theirs in OURS_FROM_THEIRS.items():
        for part in ("weight", "bias"):
            source = theirs if theirs.startswith("input_") else first + theirs
            found[f"{ours}.{part}"] = states[f"{source}.{part}"]
    return found
