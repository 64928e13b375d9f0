"""`saat run`: any script, with S3PRL prepared and nothing else changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saat.errors import SaatError
from saat.run import run_script

CHECKOUT = Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import json, sys
from s3prl import hub
import s3prl, s3prl.downstream, helper
print(json.dumps([__name__, sys.argv, sys.path[0], s3prl.__file__, hasattr(hub, "saat_ours_local"), helper.VALUE]))
"""


def test_script_runs_as_python_would(tmp_path, capsys):
    import s3prl

    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("VALUE = 5\n")
    argv, path = list(sys.argv), list(sys.path)
    run_script(tmp_path / "script.py", ["-u", "saat_ours", "--flag"])
    name, seen, first, where, registered, value = json.loads(capsys.readouterr().out)
    assert name == "__main__" and first == str(tmp_path)
    assert seen == [str(tmp_path / "script.py"), "-u", "saat_ours", "--flag"]
    assert where == s3prl.__file__ and registered and value == 5
    assert sys.argv == argv and sys.path == path
    sys.modules.pop("helper")


def test_errors_and_exits_pass_through(tmp_path):
    (tmp_path / "script.py").write_text("import sys; sys.exit(7)\n")
    with pytest.raises(SystemExit, match="7"):
        run_script(tmp_path / "script.py", [])
    with pytest.raises(SaatError, match="saat run: no such script: .*gone.py"):
        run_script(tmp_path / "gone.py", [])


@pytest.mark.parametrize("inside", [True, False])
def test_a_checkout_of_s3prl_is_the_one_registered_with(tmp_path, inside):
    """The script of a lab's checkout gets that S3PRL with our upstreams in it, not the one that is installed."""
    package = tmp_path / "lab" / "s3prl"
    for folder in (package, package / "downstream", package / "upstream"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (package / "hub.py").touch()
    (package / "upstream" / "interfaces.py").write_text(
        "import torch\nclass UpstreamBase(torch.nn.Module):\n    pass\n"
    )
    script = (package if inside else package.parent) / "run_downstream.py"
    script.write_text(SCRIPT)
    (script.parent / "helper.py").write_text("VALUE = 5\n")
    code = "import sys; sys.path.append(sys.argv[1]); from saat.run import run_script; run_script(sys.argv[2], ['x'])"
    command = [sys.executable, "-c", code, str(CHECKOUT), script.name]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, seen, _, where, registered, _ = json.loads(done.stdout.splitlines()[-1])
    assert (name, seen, registered) == ("__main__", ["run_downstream.py", "x"], True)
    assert where == str(package / "__init__.py")
