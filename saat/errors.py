"""The error a user can mend: its message says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class SaatError(ValueError):
    """Something the user gave (a file, an option, a config key) cannot be used. Commands print it without traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known spelling of `name`, or all of them when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(known)
