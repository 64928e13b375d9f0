"""torch.hub entries: `torch.hub.load(REPOSITORY, "saat_ours", ckpt=FILE)`."""

dependencies = ["torch", "torchaudio", "s3prl", "omegaconf", "yaml"]

from saat import compat  # noqa: E402

compat.apply()

from saat.upstream.hubconf import *  # noqa: E402, F403
