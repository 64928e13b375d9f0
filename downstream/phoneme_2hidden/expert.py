"""The probe `phoneme_2hidden` (SPEC section 4), as S3PRL's runner finds it."""

from saat.downstream.probe import ProbeExpert


class DownstreamExpert(ProbeExpert):
    """Which phoneme a token is centred on: two hidden layers."""

    probe = "phoneme_2hidden"
