"""The probe `speaker_utterance` (SPEC section 4), as S3PRL's runner finds it."""

from saat.downstream.probe import ProbeExpert


class DownstreamExpert(ProbeExpert):
    """Who speaks, from the mean of an utterance's tokens: one linear layer."""

    probe = "speaker_utterance"
