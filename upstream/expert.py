"""What S3PRL calls an upstream: waveforms in, hidden states out."""

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor

from saat.errors import SaatError
from saat.upstream import checkpoint
from saat.upstream.attention import variant
from saat.upstream.config import ModelConfig, differences, model_config, read_yaml
from saat.upstream.encoder import AudioAlbert
from saat.upstream.features import Features
from saat.upstream.quantize import quantised


class UpstreamExpert(UpstreamBase):
    """One variant as an S3PRL upstream.

    Args:
        upstream: its name, such as `saat_ours`.
        ckpt: a `states-N.ckpt`, a `model.safetensors` or the folder of a published checkpoint; the model's config
            comes from it. Without it, the store's checkpoint of that name is taken (saat/sharing/store.py).
        model_config: a YAML file; the model's config of an untrained model where no checkpoint is given; its key
            `quantize` in any case. With a checkpoint it may repeat that one's config, not change it.
        tag: which of the store's; by default its default.
        quantize: `int8`: linear layers in 8 bits, on a CPU only (upstream/quantize.py); it cannot be fine-tuned.
        untrained: random weights (from `seed`) of the shape that ckpt or model_config says: the control.

    Errors: SaatError when there is no checkpoint, or it is of another variant or damaged.
    """

    def __init__(
        self,
        upstream: str,
        ckpt: str | None = None,
        model_config: str | None = None,
        untrained: bool = False,
        seed: int = 0,
        tag: str | None = None,
        quantize: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        has_weights = variant(upstream).attention is not None
        if has_weights and ckpt is None and not untrained:
            from saat.sharing.store import find

            ckpt = str(find(upstream, tag))
        # Through -g as well, since S3PRL's runner has no flag for an upstream's own options.
        options = read_yaml(model_config) if model_config else {}
        quantize = options.pop("quantize", quantize)
        states = checkpoint.load(ckpt) if ckpt is not None else None
        self.model_config = self._config(upstream, states, ckpt, (options, str(model_config)), untrained)
        trained = has_weights and states is not None and not untrained
        if trained:
            checkpoint.check_shapes(self.model_config, states["Transformer"], str(ckpt))
        self.features = Features(self.model_config.audio)
        self.encoder = None
        if has_weights:
            # Weights of its own, and the caller's random numbers left as they were.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.encoder = AudioAlbert(self.model_config)
            if trained:
                checkpoint.load_weights(self.encoder, states["Transformer"], str(ckpt))
            if quantize is not None:
                self.encoder = quantised(self.encoder, quantize)
        self.quantize = quantize

    @staticmethod
    def _config(
        upstream: str, states: dict | None, ckpt: str | None, options: tuple[dict, str], any_variant: bool
    ) -> ModelConfig:
        if states is None:
            return model_config(upstream, options)
        saved = dict(states["Upstream_Config"])
        name = saved.get("upstream")
        if name != upstream and (any_variant or variant(upstream).attention is None):
            # The control and the Mel baseline take the shape and the features of any variant's checkpoint.
            saved = {key: value for key, value in saved.items() if key not in ("upstream", "attention")}
        elif name != upstream:
            raise SaatError(f"{ckpt} is a checkpoint of {name}, not of {upstream}: use -u {name}")
        config = model_config(upstream, (saved, f"the config in {ckpt}"))
        asked = model_config(upstream, (saved, ckpt), options)
        if asked != config:
            raise SaatError(
                f"{options[1]}: another model than that of {ckpt}, whose own config is taken: "
                f"{'; '.join(differences(config.to_dict(), asked.to_dict()))}. Only `quantize` can be chosen here"
            )
        return config

    def get_downsample_rates(self, key: str) -> int:
        """Samples from token to token (S3PRL interface)."""
        return self.model_config.audio.stride

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Hidden states (S3PRL interface).

        Args:
            wavs: B waveforms, each (samples,), 16 kHz.

        Returns:
            hidden_states: num_layers + 1 tensors (B, T, H), T = ceil(longest / stride), zero beyond each
            utterance's end (the Mel baseline has one, the features); last_hidden_state (B, T, H).

        Errors: SaatError for an empty waveform or one with NaN or infinite samples.
        """
        check_waveforms(wavs)
        features, lengths = self.features(wavs)
        if self.quantize and features.device.type != "cpu":
            raise SaatError(f"quantize: {self.quantize} is for the CPU, not for {features.device}: leave it out there")
        states = [features] if self.encoder is None else self.encoder(features, lengths)
        return {"hidden_states": states, "last_hidden_state": states[-1]}


def check_waveforms(wavs: list[Tensor]) -> None:
    """SaatError that names the first waveform of the batch that is empty or not finite."""
    for i, wav in enumerate(wavs):
        if wav.dim() != 1 or len(wav) == 0:
            raise SaatError(f"waveform {i} of the batch has shape {tuple(wav.shape)}: expected (samples,), samples > 0")
    finite = torch.stack([wav.detach().isfinite().all() for wav in wavs])
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0, 0])
        at = int((~wavs[i].detach().isfinite()).nonzero()[0, 0])
        raise SaatError(f"waveform {i} of the batch has a NaN or infinite value at sample {at}: repair that file")
