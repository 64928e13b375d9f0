"""The tiny corpora of the probes' tests are of use here, too."""

from tests.downstream.conftest import make_corpus  # noqa: F401
