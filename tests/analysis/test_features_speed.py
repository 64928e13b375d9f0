"""The comparison of the feature pass with S3PRL's, and what it has to show."""

import re

import pytest
import torch

from saat.analysis import features_speed
from saat.analysis.hour import waveforms
from saat.upstream.config import AudioConfig


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_it_prints(capsys):
    features_speed.main(["--crops", "2", "--seconds", "1.234", "--threads", "1", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("2 crops of 1.234 s")
    assert len(re.findall(r"S3PRL \d+\.\d+ s, ours \d+\.\d+ s, ratio \d", printed)) == 2


@pytest.mark.parametrize("config", [AudioConfig(), AudioConfig(delta=0, stack=1), AudioConfig(delta=2, stack=2)])
def test_same_crops_same_features(config):
    largest, share = features_speed.differences(waveforms(3, 2.5, None), config)
    assert largest < 1e-9 and share > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_at_least_five_times_faster_than_s3prls(threads):
    torch.set_num_threads(threads)
    theirs, ours = features_speed.times(waveforms(16, 15, None), AudioConfig(), 7)
    assert (theirs / ours).max() > 5
