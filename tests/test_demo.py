"""`saat demo` on a corpus and with steps small enough for a test: what it writes, and that it goes on."""

import json

import pytest

pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeakng-loader: pip install -e '.[demo]'")

from saat.demo import corpus as demo_corpus  # noqa: E402
from saat.demo import run as demo  # noqa: E402
from saat.pretrain import cli  # noqa: E402

COLUMNS = {"upstream", *demo.PROBES, "pretrain_seconds", "x_real_time"}


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A demo of seconds; returns the list of what was pre-trained."""
    pretrained, whole = [], cli.pretrain

    def make(root=None, progress=True):
        return demo_corpus._make_corpus(tmp_path / "corpus", demo_corpus.SPEAKERS[:4], 10, False)

    def pretrain(argv, progress=True):
        pretrained.append(argv[argv.index("-u") + 1])
        return whole([*argv, "-o", "config.runner.total_steps=2,,config.model.transformer.hidden_size=24"], progress)

    monkeypatch.setattr(demo_corpus, "make_corpus", make)
    monkeypatch.setattr(demo, "make_corpus", make)
    monkeypatch.setattr(cli, "pretrain", pretrain)
    monkeypatch.setattr(demo, "STEPS", dict.fromkeys(demo.PROBES, 5))
    monkeypatch.setenv("SAAT_CACHE", str(tmp_path / "cache"))
    return pretrained


def test_what_it_writes_and_that_a_second_call_redoes_no_probe(short, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    rows = demo.run_demo(out)
    assert rows == json.loads((out / "table.json").read_text())
    assert [row["upstream"] for row in rows] == ["saat_mel", "saat_qk", "saat_ours", "saat_ours_untrained"]
    for row in rows:
        assert set(row) >= COLUMNS
        assert all(0 <= row[probe] <= 1 and 0 < row["chance"][probe] < 1 for probe in demo.PROBES)
        assert row["x_real_time"] > 0 and (row["pretrain_seconds"] > 0) == (row["upstream"] in demo.PRETRAINED)
    table = (out / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out and len(table.splitlines()) == 6
    for figure in ("heads.png", "reconstruction.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr("saat.downstream.fast.extract", None)  # would fail if it were called
    assert demo.run_demo(out) == rows


def test_an_interrupt_between_steps_loses_nothing(short, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", demo._probed
    calls = []

    def interrupted(name, *args):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(name, *args)

    monkeypatch.setattr(demo, "_probed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out)
    before = {path: path.read_bytes() for path in (out / "probes").glob("*.json")}
    assert len(before) == 2
    rows = demo.run_demo(out)
    assert len(rows) == 4 and all(path.read_bytes() == data for path, data in before.items())
    assert all(row["pretrain_seconds"] > 0 for row in rows if row["upstream"] in demo.PRETRAINED)
