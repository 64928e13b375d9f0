"""torch.hub entries: `torch.hub.load(REPOSITORY, "saat_ours")` takes the store's checkpoint of that name,
`torch.hub.load(REPOSITORY, "saat_ours", ckpt=FILE)` a file, and `saat_ours_url` an address."""

dependencies = ["torch", "torchaudio", "s3prl", "omegaconf", "yaml", "platformdirs", "safetensors", "huggingface_hub"]

from saat import compat  # noqa: E402

compat.apply()

from saat.upstream.hubconf import *  # noqa: E402, F403
from saat.upstream.hubconf import store_entries  # noqa: E402

globals().update(store_entries())
