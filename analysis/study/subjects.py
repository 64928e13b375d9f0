"""What a study compares: the upstreams, and ours with other starts."""

from dataclasses import dataclass

from saat.errors import SaatError, did_you_mean
from saat.upstream.attention import REGISTRY


@dataclass(frozen=True)
class Subject:
    """A row of the study's tables."""

    label: str
    upstream: str  # as S3PRL names it
    kind: str = "pretrained"  # or `features` (nothing to train) or `untrained`
    override: str = ""  # -o of its pre-training
    init_from: str | None = None  # the label whose maps its R starts from

    @property
    def pretrained(self) -> bool:
        return self.kind == "pretrained"


SUBJECTS = {
    subject.label: subject
    for subject in (
        *(Subject(name, name, "pretrained" if entry.attention else "features") for name, entry in REGISTRY.items()),
        Subject("saat_ours_untrained", "saat_ours", "untrained"),
        Subject("saat_ours_authors_init", "saat_ours", override="config.model.attention.init=authors"),
        Subject("saat_ours_from_qk", "saat_ours", init_from="saat_qk"),
    )
}


def chosen(labels: list[str] | None) -> list[Subject]:
    """The subjects of these labels, in the tables' order; all without labels.

    Errors: SaatError names the nearest known label; a start from another subject's maps needs that subject.
    """
    for label in labels or ():
        if label not in SUBJECTS:
            raise SaatError(f"-u: unknown upstream '{label}': {did_you_mean(label, SUBJECTS)}")
    found = [subject for label, subject in SUBJECTS.items() if not labels or label in labels]
    for subject in found:
        if subject.init_from and SUBJECTS[subject.init_from] not in found:
            raise SaatError(f"-u {subject.label} starts from the maps of {subject.init_from}: add it to -u")
    return found
