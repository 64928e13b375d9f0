"""Where to compute, and in which precision."""

import torch

from saat.errors import SaatError
from saat.pretrain.distributed import local_rank

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str | None = None) -> str:
    """The device of `--device`; without one, CUDA where there is one, else the CPU.

    Under torchrun every process of a machine gets a GPU of its own.

    Errors: SaatError for a device that does not exist here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank()}"
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise SaatError(f"--device {name} cannot be used here ({first}); pass --device cpu") from error
    return name


def autocast(device: str, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, features and the loss stay in float32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)
