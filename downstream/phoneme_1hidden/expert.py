"""The probe `phoneme_1hidden` (SPEC section 4), as S3PRL's runner finds it."""

from saat.downstream.probe import ProbeExpert


class DownstreamExpert(ProbeExpert):
    """Which phoneme a token is centred on: one hidden layer."""

    probe = "phoneme_1hidden"
