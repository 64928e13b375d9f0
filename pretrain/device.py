"""Where to compute."""

import torch

from saat.errors import SaatError


def choose_device(name: str | None = None) -> str:
    """The device of `--device`; without one, CUDA where there is one, else the CPU.

    Errors: SaatError for a device that does not exist here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise SaatError(f"--device {name} cannot be used here ({first}); pass --device cpu") from error
    return name
