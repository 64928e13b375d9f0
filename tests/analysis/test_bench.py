"""`saat bench`: what it counts, what it refuses, what it writes. What it times is for results, not for tests."""

import json

import numpy as np
import pytest
import soundfile
import torch

from saat.analysis import bench as bench_module
from saat.analysis.bench import bench, gate
from saat.analysis.bench_command import speech
from saat.analysis.bench_plot import PAPER_TIME, slope
from saat.analysis.measure import middle, operations, peak_bytes, ratios
from saat.analysis.subjects import S3PRL, VARIANTS, Workload, run_of
from saat.cli import main
from saat.errors import SaatError

KEYS = {
    "upstream",
    "mode",
    "length",
    "batch",
    "dtype",
    "seconds",
    "ratio_to_qk",
    "ratio_to_s3prl",
    "peak_bytes",
    "flops",
    "roofline",
}


TINY = {"hidden": 48, "batch": 2}
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--hidden", "48", "--batch", "2"]
FLAGS = [*SMALL, "--threads", "1"]


def derived(name: str, n: int, H: int = 48, F: int = 192, layers: int = 6, D: int = 480) -> int:
    """Operations of an utterance in inference, from SPEC section 5 (2 a multiply-add), input projection included."""
    shared = 2 * n * H**2 + 2 * n * H * F + n**2 * H
    own = {"saat_qk": 2 * n * H**2 + n**2 * H, "saat_q": n * H**2 + n**2 * H}.get(name, 0)
    return 2 * (layers * (shared + own) + n * D * H)


@pytest.mark.parametrize("name", ["saat_qk", "saat_q", "saat_syn_random", "saat_ours"])
def test_counted_operations_are_the_derived_ones(name):
    work = Workload(length=40, **TINY)
    assert operations(run_of(name, work)) == 2 * derived(name, 40)


def test_s3prls_has_the_operations_of_qk():
    work = Workload(length=40, **TINY)
    assert operations(run_of(S3PRL, work)) == operations(run_of("saat_qk", work))
    assert operations(run_of("torch_transformer_encoder", work)) == operations(run_of("saat_qk", work))


def test_qk_and_s3prls_compute_the_same():
    """On a ragged batch: what is timed is the same work."""
    work = Workload(length=30, ragged=True, **TINY)
    ours, theirs = run_of("saat_qk", work)(), run_of(S3PRL, work)()
    for row, n in enumerate(work.lengths().tolist()):
        torch.testing.assert_close(ours[-1][row, :n], theirs[-1][row, :n], atol=1e-4, rtol=0)


def test_command_writes_json_and_plot(tmp_path, capsys):
    names = [S3PRL, "saat_qk", "saat_ours", "saat_xbox"]
    files = ["--json", str(tmp_path / "new" / "b.json"), "--plot", str(tmp_path / "b.png")]
    size = ["--length", "10", "20", "--rounds", "2", "--ragged", *FLAGS]
    assert main(["bench", "--upstreams", *names, *size, *files]) == 0
    entries = json.loads((tmp_path / "new" / "b.json").read_text())
    assert [(e["upstream"], e["length"]) for e in entries] == [(name, n) for n in (10, 20) for name in names]
    for entry in entries:
        assert KEYS <= entry.keys() and entry["seconds"] > 0 and entry["mode"] == "inference"
        assert 0 < entry["roofline"] < 10
        assert (entry["ratio_to_qk"] == 1) == (entry["upstream"] == "saat_qk")
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert "saat_xbox" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--train"], ["--end-to-end"], ["--train", "--dtype", "bfloat16", "--ragged"]])
def test_modes(flags, tmp_path):
    size = ["--length", "12", "--rounds", "1", *FLAGS]
    out = tmp_path / "b.json"
    assert main(["bench", "--upstreams", "saat_qk", "saat_ours", S3PRL, *size, *flags, "--json", str(out)]) == 0
    entries = json.loads(out.read_text())
    assert entries[0]["mode"] == ("training" if "--train" in flags else "inference")


def test_bad_files_are_left_out(tmp_path):
    """One that cannot be read does not end a study's last step."""
    bad, good = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(bad, np.full(4000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(SaatError, match=r"--corpus .*none of its files can be read: .*a\.wav"):
        speech(str(tmp_path), 1000)
    soundfile.write(good, 0.1 * np.ones(4000), 16000)
    assert speech(str(tmp_path), 8000).shape == (4000,)


def test_threads_are_torchs(tmp_path):
    """Those that OMP_NUM_THREADS says, where nothing else is asked for: here one."""
    file = tmp_path / "bench.json"
    main(["bench", *SMALL, "--upstreams", "saat_ours", "--length", "20", "--rounds", "1", "--json", str(file)])
    assert json.loads(file.read_text())[0]["threads"] == 1


def test_refusals(capsys):
    assert main(["bench", "--upstreams", "saat_our"]) == 2
    assert "saat_ours" in capsys.readouterr().err
    assert main(["bench", "--length", "0"]) == 2
    assert main(["bench", "--dtype", "float64"]) == 2
    with pytest.raises(SaatError, match="end to end"):
        run_of("torch_transformer_encoder", Workload(end_to_end=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_gate_passes(name):
    gate(name, Workload(length=35, **TINY))


def test_gate_stops_a_wrong_variant(monkeypatch):
    from saat.upstream.attention.softmax import Q

    real = Q.forward
    monkeypatch.setattr(Q, "forward", lambda self, *args: real(self, *args) + 1e-3)
    monkeypatch.setattr(bench_module, "in_turn", lambda *args: pytest.fail("timed"))
    with pytest.raises(SaatError, match="saat_q: forward and weights @ V differ by 1.0e-03"):
        bench(["saat_q"], Workload(length=10, **TINY), 1)


def test_numbers():
    assert middle([3.0, 1.0, 2.0]) == (2.0, 0.5) and middle([4.0]) == (4.0, 0.0)
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert slope([10, 100, 1000], [0.1, 10.0, 1000.0]) == pytest.approx(2)
    assert PAPER_TIME.keys() == set(VARIANTS)
    taken = peak_bytes(lambda: torch.ones(50_000_000).sum(), "cpu")
    assert taken is None or 180e6 < taken < 260e6


def test_int8_counts_what_float32_does():
    work = Workload(length=50, **TINY)
    whole, small = bench(["saat_ours", "saat_ours_int8"], work, rounds=1, memory=False, progress=False)
    assert whole["flops"] == small["flops"] > 0
    with pytest.raises(SaatError, match="saat_ours_int8 is for inference"):
        run_of("saat_ours_int8", Workload(length=50, train=True, **TINY))
