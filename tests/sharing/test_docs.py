"""Every `saat` command in docs/sharing.md works as written, in the order written."""

import json
import shlex
from pathlib import Path

import yaml

from saat.cli import main
from saat.sharing import onnx_export

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sharing.md"


def test_sharing(ckpt, store, the_hub, s3prl_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # What the page supposes: a pre-trained model and its probe, another lab's store, S3PRL's checkpoint and sources.
    trained = tmp_path / "result/pretrain/mine/states-2000.ckpt"
    trained.parent.mkdir(parents=True)
    ckpt().rename(trained)
    probe = tmp_path / "result/downstream/probe"
    probe.mkdir(parents=True)
    result = {"probe": "speaker_frame", "split": "test", "accuracy": 0.5, "chance": 0.1, "utterances": 7, "step": 3}
    (probe / "accuracy-test.json").write_text(json.dumps(result))
    (probe / "args_1.yaml").write_text(yaml.safe_dump({"upstream": "saat_ours_local", "upstream_ckpt": str(trained)}))
    s3prl_checkpoint(tmp_path / "aalbert.ckpt")
    for file in ("run_pretrain.py", "pretrain/runner.py"):
        (tmp_path / "s3prl/s3prl" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s3prl/s3prl" / file).write_text("")
    places = {"/other/store": store, "/path/to/s3prl": tmp_path / "s3prl"}
    commands = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    saat ")]
    assert len(commands) >= 10
    # test_onnx.py has it with the real function, which takes long and needs packages.
    monkeypatch.setattr(onnx_export, "export_onnx", lambda source, out, force: Path(source).is_file() or 1 / 0)
    for command in commands:
        for named, place in places.items():
            command = command.replace(named, str(place))
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
