"""`saat autoload`: the file, and what it does in a fresh interpreter."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from saat import autoload
from saat.cli import main

ROOT = Path(__file__).resolve().parents[1]
ESPNET = """
import sys
assert "torch" not in sys.modules and "s3prl" not in sys.modules  # starting Python costs nothing
from s3prl.nn import S3PRLUpstream  # as espnet2/asr/frontend/s3prl.py does
assert "saat_ours" in S3PRLUpstream.available_names()
print(S3PRLUpstream("saat_mel").num_layers)
import s3prl.downstream.speaker_frame.expert
"""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    return tmp_path


def python(site: Path, code: str, *paths: Path) -> str:
    """Runs code in a Python that takes `site` as one of its site-packages."""
    start = f"import site; site.addsitedir({str(site)!r})\n"
    path = os.pathsep.join(map(str, paths))
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
        cwd=site,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_on_and_off(site, capsys):
    assert main(["autoload", "on"]) == 0
    assert [path.name for path in site.iterdir()] == ["saat_autoload.pth"]
    assert "1" in python(site, ESPNET, ROOT).splitlines()
    assert main(["autoload", "off"]) == 0 and not list(site.iterdir())
    assert main(["autoload", "off"]) == 0
    assert "autoload is off" in capsys.readouterr().out.splitlines()[-1]


def test_a_folder_that_cannot_be_written(site, monkeypatch, capsys):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(site / "gone")})
    assert main(["autoload", "on"]) == 2
    assert "cannot change" in capsys.readouterr().err


def test_installing_twice_adds_one_finder(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, autoload.HUB)
    before = len(sys.meta_path)
    autoload.install()
    autoload.install()
    assert len(sys.meta_path) == before + 1
