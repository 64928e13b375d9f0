"""The command `saat`, and what it says when something is wrong."""

import json
import subprocess
import sys

import pytest

from saat import __version__
from saat.cli import main
from saat.upstream.attention import REGISTRY


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == f"saat {__version__}"


def test_list(capsys):
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    assert "saat_ours" in table and "Simple ALSH" in table
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == len(REGISTRY) and {"Baseline (Mel)", "Ours"} <= {e["paper_row"] for e in entries}
    windows = {"saat_syn_dense", "saat_syn_mdense", "saat_syn_random", "saat_ours"}
    assert windows <= {e["name"] for e in entries if not e["any_length"]}
    assert {"saat_mel", "saat_qk", "saat_xbox"} <= {e["name"] for e in entries if e["any_length"]}


def test_run(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom s3prl import hub\nprint(sys.argv[1:], hasattr(hub, 'saat_ours'))\n")
    assert main(["run", str(script), "-u", "saat_ours", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "['-u', 'saat_ours', '--device', 'cpu'] True"
    assert main(["run", str(tmp_path / "absent.py")]) == 2
    assert "no such script" in capsys.readouterr().err


def test_demo_into_a_place_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_the_command_line_does_not_wait_for_torch():
    code = "import sys, saat.cli; saat.cli.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
