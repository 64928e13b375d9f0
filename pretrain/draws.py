"""Random numbers as a function of (seed, purpose, number, position): no state, no order, the same on every device.

Crops, masks, the order of the data, dropout and the vectors that hash all come from here, so that what the model sees
at a step depends on the seed and the step alone: not on the number of workers, nor on where a run was stopped and
resumed.

The function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), chained over the words of the key.
"""

from torch import Tensor

# Purposes. Each is a stream of its own.
ORDER, GROUPS, CROP, CHOOSE, TREAT, REPLACE, DROPOUT, HASH = range(1, 9)

BITS = 53  # of each number: they are integers in [0, 2^53), exact in float64
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draw(seed: int, purpose: int, number: int, position: int) -> int:
    """One integer in [0, 2^53): the definition; `draws` gives the same for many."""
    state = 0
    for word in (seed, purpose, number, position):
        state = _mix(((state ^ (word & _MASK)) + _GOLDEN) & _MASK)
    return state >> (64 - BITS)


def draws(seed: int, purpose: int, numbers: Tensor, positions: Tensor) -> Tensor:
    """Integers in [0, 2^53): numbers (B,) and positions (P,), int64 on one device, to (B, P)."""
    state = 0
    for word in (seed, purpose):
        state = _mix(((state ^ (word & _MASK)) + _GOLDEN) & _MASK)
    x = _mix_tensor((_signed(state) ^ numbers) + _signed(_GOLDEN))[:, None]
    x = _mix_tensor((x ^ positions) + _signed(_GOLDEN))
    return _shift(x, 64 - BITS)


def threshold(share: float) -> int:
    """A draw lies below this with probability `share`."""
    return int(share * 2**BITS)


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * _FIRST & _MASK
    x = (x ^ (x >> 27)) * _SECOND & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """`_mix` of int64, whose products wrap around as 64-bit integers do."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return x - (1 << 64) if x >> 63 else x
