"""docs/variants.md as written: its variant, added to a copy of the checkout, passes the tests that others pass."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The checkout with the page's files and lines in it."""
    folder = tmp_path_factory.mktemp("checkout") / "copy"
    left_out = shutil.ignore_patterns(".git", "result", "build", "*.egg-info", "__pycache__", ".*cache", ".venv*")
    shutil.copytree(ROOT, folder, ignore=left_out)
    files = re.findall(r"^`([\w/]+\.\w+)`[^\n]*:\n\n```\w+\n(.*?)```", PAGE, re.S | re.M)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, text in files:
        (folder / name).write_text(text, encoding="utf-8")
    ((imported, line),) = re.findall(r"```python\n(from .*)\n( +Variant\(.*)\n```", PAGE)
    registry = folder / "upstream" / "attention" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    for before, added in (("from saat.upstream.attention.fixed", imported), ('        Variant("saat_mel"', line)):
        assert text.count(before) == 1
        text = text.replace(before, f"{added}\n{before}")
    registry.write_text(text, encoding="utf-8")
    return folder


def run(copy: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# In one process, since starting one takes longer than most of what it does here.
COMMANDS = """
import json, sys, pytest
from saat.cli import main
tests, listing, bench = json.loads(sys.argv[1])
assert main(listing) == 0 and main(bench) == 0
sys.exit(pytest.main(tests))
"""


def test_its_commands(copy):
    tests, listing, bench = commands()
    # Of the tests those of the attention itself, and of the figures.
    chosen = ["tests/upstream/test_attention.py", "tests/pretrain/test_watch.py"]
    tests = [word for given in tests[2:] for word in (chosen if given == "tests" else [given])]
    bench += ["--hidden", "48", "--batch", "1"]  # this, too, holds forward() against weights()
    printed = run(copy, "-c", COMMANDS, json.dumps([tests, listing, bench]))
    assert re.search(r"^saat_distance +Distance +0 +yes +as they are +no$", printed, re.M)
    assert re.search(r"^saat_distance +100 +[\d.]+", printed, re.M)
    assert int(re.search(r"(\d+) passed", printed)[1]) > 15 and "failed" not in printed


@pytest.mark.slow
def test_all_tests_of_the_variant(copy):
    passed = run(copy, *commands()[0])
    assert int(re.search(r"(\d+) passed", passed)[1]) > 30 and "failed" not in passed


def commands() -> list[list[str]]:
    """The arguments of the page's commands; its other indented lines are code."""
    section = PAGE.split("## What works by itself")[1].split("\n- ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (.+)$", section, re.M)]


def test_its_style_is_ours(copy):
    run(copy, "-m", "ruff", "check", "upstream")
    run(copy, "-m", "ruff", "format", "--check", "upstream")
