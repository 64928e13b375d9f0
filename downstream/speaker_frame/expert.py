"""The probe `speaker_frame` (SPEC section 4), as S3PRL's runner finds it."""

from saat.downstream.probe import ProbeExpert


class DownstreamExpert(ProbeExpert):
    """Who speaks, from every token alone: one linear layer."""

    probe = "speaker_frame"
