"""The wheel and the editable install: what is in them, and that they work from any directory."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import saat

ROOT = Path(__file__).resolve().parent.parent
USE = """
import saat; saat.register()
from pathlib import Path
from s3prl import hub
import saat.analysis, saat.pretrain.cli, saat.downstream
assert hub.saat_ours_untrained and hub.saat_mel
from saat import configs
assert "saat_ours" in configs.names("model") and {"demo", "mini", "paper"} <= set(configs.names("pretrain"))
from saat.run_downstream import packaged_config
assert all(packaged_config(p).is_file() for p in ("speaker_utterance", "speaker_frame", "phoneme_1hidden"))
import s3prl.downstream.phoneme_2hidden.expert
print(Path(saat.pretrain.__file__).parent)
"""


def run(code: str, cwd: Path, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves files in the source tree.
    left_out = shutil.ignore_patterns(".git", "result", "build", "*.egg-info", "__pycache__", ".*cache", ".venv*")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), "./source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_one_package_and_every_yaml(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name.split("/")[0]} == {"saat"}
    rooms = ("configs", "downstream", "upstream", "pretrain", "analysis")
    mine = [path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    mine += [path.relative_to(ROOT / "saat") for path in (ROOT / "saat").rglob("*.py")]
    missing = [f for f in mine if f.suffix in (".py", ".yaml") and f"saat/{f.as_posix()}" not in names]
    assert not missing
    assert any(name.endswith("licenses/LICENSE") or name.endswith("LICENSE") for name in names)


def test_wheel_works_from_any_directory(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(USE, elsewhere, PYTHONPATH=str(site)) == str(site / "saat" / "pretrain")


def test_bare_checkout_works_from_any_directory(tmp_path):
    assert run(USE, tmp_path, PYTHONPATH=str(ROOT)) == str(ROOT / "pretrain")


def test_editable_install_works_from_any_directory(tmp_path):
    try:
        importlib.metadata.distribution("s3prl-saat")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("s3prl-saat is not installed: pip install -e .")
    assert run(USE, tmp_path)
    command = shutil.which("saat", path=str(Path(sys.executable).parent))
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"saat {saat.__version__}"


def test_the_rooms_do_not_take_top_level_names(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import importlib.util as u; print([n for n in ('upstream', 'pretrain', 'downstream') if u.find_spec(n)])"
    assert run(code, tmp_path, PYTHONPATH=str(site)) == "[]"
