"""Addresses, downloads and the Hugging Face Hub, whose own calls are replaced at their boundary."""

import functools
import http.server
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from s3prl import hub

from saat.cli import main
from saat.errors import SaatError
from saat.sharing import actions, published
from saat.sharing.remote import fetch


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/web over HTTP; torch.hub keeps its downloads in tmp_path/hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    web = tmp_path / "web"
    web.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(web)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield SimpleNamespace(web=web, address=f"http://127.0.0.1:{httpd.server_port}", stop=httpd.shutdown)
    httpd.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.ckpt",  # without its hash
        "https://example.org/a.ckpt#sha256=12",
        "ftp://example.org/a#sha256=" + "0" * 64,
        "file:///etc/passwd#sha256=" + "0" * 64,
        "/etc/passwd",
        "hf://../x/y",
        "hf://owner",
        "None",
    ],
)
def test_other_addresses(address):
    with pytest.raises(SaatError, match="expected hf://owner/repo"):
        fetch(address)


def test_http_checks_the_hash_and_downloads_once(ckpt, server):
    path = shutil.copy(ckpt(), server.web / "states-9.ckpt")
    address = f"{server.address}/states-9.ckpt#sha256={published.file_sha256(path)}"
    assert hub.saat_ours_url(ckpt=address).model_config.upstream == "saat_ours"
    with pytest.raises(SaatError, match="cannot download .*invalid hash value"):
        hub.saat_ours_url(ckpt=address[:-64] + "0" * 64)
    with pytest.raises(SaatError, match="cannot download .*404"):
        hub.saat_ours_url(ckpt=f"{server.address}/gone.ckpt#sha256={'1' * 64}")
    server.stop()
    assert hub.saat_ours_url(ckpt=address).model_config.upstream == "saat_ours"


def test_http_serves_html(ckpt, server):
    (server.web / "model.safetensors").write_text("<html>sign in first</html>")
    digest = published.file_sha256(server.web / "model.safetensors")
    with pytest.raises(SaatError, match="is not a safetensors file"):
        hub.saat_ours_url(ckpt=f"{server.address}/model.safetensors#sha256={digest}")


def test_pull_over_http(ckpt, server, store):
    folder = actions.publish(str(ckpt()), tag="mini")
    shutil.copy(folder / "model.safetensors", server.web)
    digest = published.file_sha256(folder / "model.safetensors")
    address = f"{server.address}/model.safetensors#sha256={digest}"
    with pytest.raises(SaatError, match="a single file, without a record: pass --tag"):
        actions.pull(address)
    record = published.read_record(actions.pull(address, tag="pulled"))
    assert record["source_sha256"] == digest and record["pretraining"]["steps"] == 9


def test_from_one_lab_to_another(ckpt, store, the_hub, monkeypatch, tmp_path, capsys):
    published_at = actions.publish(str(ckpt()), tag="mini")
    assert main(["push", "saat_ours.mini", "lab/saat-ours-mini"]) == 0
    assert capsys.readouterr().out.strip() == "https://huggingface.co/lab/saat-ours-mini/commit/1"
    (the_hub.folder / "lab/saat-ours-mini/README.md").write_text("# Edited on the Hub\n")
    # The other lab.
    monkeypatch.setenv("SAAT_CHECKPOINTS", str(tmp_path / "other"))
    assert main(["pull", "hf://lab/saat-ours-mini@main"]) == 0
    pulled = tmp_path / "other" / "saat_ours" / "mini"
    for name in ("model.safetensors", "config.json"):
        assert (pulled / name).read_bytes() == (published_at / name).read_bytes()
    assert (pulled / "README.md").read_text() == "# Edited on the Hub\n"
    wavs = [torch.randn(5000, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        states = [
            model.eval()(wavs)["last_hidden_state"]
            for model in (
                hub.saat_ours(),
                hub.saat_ours_local(ckpt=str(ckpt())),
                hub.saat_ours_url(ckpt="hf://lab/saat-ours-mini"),
            )
        ]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    patterns = ["model.safetensors", "config.json", "README.md"]
    assert ("snapshot_download", "lab/saat-ours-mini", "main", patterns, False) in the_hub.calls
    assert ("snapshot_download", "lab/saat-ours-mini", None, patterns, False) in the_hub.calls


def test_the_hub_is_asked_for_nothing_that_runs(the_hub):
    with pytest.raises(SaatError, match="cannot get hf://owner/gone@v1: neither in the cache"):
        fetch("hf://owner/gone@v1")
    ((_, _, _, patterns, _),) = the_hub.calls
    assert not [pattern for pattern in patterns if "*" in pattern or pattern.endswith((".py", ".bin", ".pt", ".ckpt"))]


def test_a_hash_pins_the_hubs_weights(ckpt, store, the_hub):
    folder = actions.publish(str(ckpt()), tag="mini")
    actions.push("saat_ours", "lab/model")
    digest = published.file_sha256(folder / "model.safetensors")
    assert fetch(f"hf://lab/model@main#sha256={digest}").is_dir()
    with pytest.raises(SaatError, match="has weights with SHA-256"):
        fetch(f"hf://lab/model#sha256={'0' * 64}")


def test_push_exchanges_no_other_model_unasked(ckpt, store, the_hub):
    actions.publish(str(ckpt(seed=1)), tag="one")
    actions.publish(str(ckpt(seed=2)), tag="two")
    actions.push("saat_ours.one", "lab/model", private=True)
    actions.push("saat_ours.one", "hf://lab/model")  # the same weights: a newer card is welcome
    with pytest.raises(SaatError, match="lab/model holds another model"):
        actions.push("saat_ours.two", "lab/model")
    actions.push("saat_ours.two", "lab/model", force=True)
    record = published.read_record(the_hub.folder / "lab/model")
    assert record["tag"] == "two" and ("create_repo", "lab/model", True, True) in the_hub.calls
    with pytest.raises(SaatError, match="cannot push to no/access: 401 Unauthorized; is there a token"):
        actions.push("saat_ours.one", "no/access")
    for repo in ("model", "lab/model@main", "https://huggingface.co/lab/model"):
        with pytest.raises(SaatError, match="expected OWNER/REPO"):
            actions.push("saat_ours.one", repo)
