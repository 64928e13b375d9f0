"""Every command of docs/probing.md works as written, in the order written, on a small corpus for few steps."""

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from saat.cli import main as saat
from saat.run_downstream import main
from saat.upstream import checkpoint
from saat.upstream.config import model_config, read_yaml
from saat.upstream.encoder import AudioAlbert

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "probing.md").read_text(encoding="utf-8")
FEW_STEPS = ",,".join(f"config.runner.{key}=2" for key in ("total_steps", "eval_step", "save_step", "log_step"))


@pytest.fixture
def places(make_corpus, tiny_config, tmp_path, monkeypatch) -> dict[str, str]:
    """What the page supposes, and where it is: a corpus with alignments and lists, and a pre-trained model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run_downstream.py"])
    # S3PRL sets this for the process.
    monkeypatch.setattr("torch.multiprocessing.set_sharing_strategy", lambda strategy: None)
    corpus = make_corpus(speakers=4, utterances=6)
    other = tmp_path / "test-other"
    other.mkdir()
    (corpus.folder / "104").rename(other / "104")
    known = [name for name in corpus.utterances if not name.startswith("104")]
    last = [name for name in known if name.endswith("5")]
    splits = corpus.write_lists(train=[name for name in known if name not in last], test=last)
    config = model_config("saat_ours", (read_yaml(tiny_config), "the test"))
    states = {"Transformer": AudioAlbert(config).state_dict(), "Upstream_Config": config.to_dict(), "Step": 2000}
    Path("result/pretrain/mine").mkdir(parents=True)
    checkpoint.save(Path("result/pretrain/mine/states-2000.ckpt"), states)
    return {
        "/data/LibriSpeech/train-clean-100": str(corpus.folder),
        "/data/alignments/converted_aligned_phones.txt": str(corpus.phones),
        "/data/splits": str(splits),
        "/data/LibriSpeech/test-other": str(other),
    }


def in_places(text: str, places: dict[str, str]) -> str:
    for named, place in places.items():
        text = text.replace(named, place)
    return text


def commands(places: dict[str, str]) -> list[list[str]]:
    """The arguments of each command, continued lines joined; few steps, in this process."""
    found = []
    for text in re.findall(r"^    python run_downstream\.py (.*)", PAGE.replace("\\\n", ""), re.M):
        arguments = shlex.split(in_places(text, places))
        if "train" in arguments:
            small = f"{FEW_STEPS},,config.downstream_expert.datarc.num_workers=0"
            if "-o" in arguments:
                at = arguments.index("-o")
                arguments, small = arguments[:at] + arguments[at + 2 :], f"{arguments[at + 1]},,{small}"
            arguments += ["-o", small]
        found.append(arguments)
    return found


def cells(table: str) -> list[list[str]]:
    """Probe, layer and test set of each line."""
    return [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines() if line.startswith("| ")]


def test_fast_probing(places, capsys):
    """The commands of `saat probe`; the table shown has the lines of the first one's."""
    shown = PAGE.split("## All four at once")[1].split("\n## ")[0]
    printed = []
    for text in re.findall(r"^    saat (probe .*)", shown.replace("\\\n", ""), re.M):
        arguments = shlex.split(in_places(text, places))
        assert saat([*arguments, "--steps", "2", "--pooled-steps", "2", "--features", "features"]) == 0, (
            capsys.readouterr().err
        )
        printed.append(capsys.readouterr().out)
    assert len(printed) == 2 and cells(shown.split("Each accuracy")[0]) == cells(printed[0])
    assert {row["split"] for row in json.loads(Path("probes.json").read_text())} == {"test", "test-other"}


def test_probing(places, capsys):
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    Path("probe.yaml").write_text(in_places(written, places), encoding="utf-8")
    for arguments in commands(places):
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    results = Path("result/downstream")
    table = PAGE.split("lie then:")[1].split("`saat publish")[0]
    named = [name.replace("-N", "-*") for row in table.splitlines() for name in re.findall(r"`([^`]*)`", row[:70])]
    files = [path.name for path in (results / "speaker").iterdir()]
    named = [name for name in named if "." in name and "runner" not in name]
    assert all(any(fnmatch(file, name) for file in files) for name in named)
    assert all(any(fnmatch(file, name) for name in named) for file in files)
    accuracy = json.loads((results / "speaker/accuracy-test.json").read_text())
    assert {"accuracy", "chance", "loss", "utterances", "tokens", "classes", "step"} < set(accuracy)
    runs = ("sum", "layer-1", "tuned")
    kept = {name: torch.load(results / name / "states-2.ckpt", weights_only=True) for name in runs}
    assert kept["sum"]["Featurizer"]["weights"].shape == (3,)
    assert "weights" not in kept["layer-1"]["Featurizer"]
    assert "Upstream" in kept["tuned"] and "Upstream" not in kept["sum"]
