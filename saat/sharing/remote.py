"""Checkpoints from elsewhere: `https://…#sha256=HEX` and `hf://owner/repo[@revision]`; and to the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.sharing import published

FILES = [published.WEIGHTS_FILE, published.RECORD_FILE, published.CARD_FILE]
HTTP = re.compile(r"(https?://[^#\s]+)#sha256=([0-9a-fA-F]{64})")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?:#sha256=([0-9a-fA-F]{64}))?", re.ASCII)


def fetch(address: str, refresh: bool = False) -> Path:
    """The local copy of a checkpoint: what `saat_ours_url` is given.

    Args:
        address: `https://…/states-N.ckpt#sha256=HEX` or `https://…/model.safetensors#sha256=HEX`, the file's hash; or
            `hf://owner/repo`, `hf://owner/repo@revision`, with `#sha256=HEX`, its weights' hash, where one wants it.
        refresh: download again.

    Returns: a file, or the folder of a published checkpoint.

    Errors: SaatError for another kind of address, a missing or wrong hash, a failed download.
    """
    address = str(address)
    if match := HTTP.fullmatch(address):
        return _download(match[1], match[2].lower(), refresh)
    if match := HUB.fullmatch(address):
        return _snapshot(match[1], match[2], (match[3] or "").lower(), refresh)
    raise SaatError(
        f"{address}: expected hf://owner/repo[@revision], or an http(s) address with the file's hash, "
        "https://…/model.safetensors#sha256=<64 hex>"
    )


def _download(address: str, digest: str, refresh: bool) -> Path:
    import torch

    folder = Path(torch.hub.get_dir()) / "saat"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (digest + (".safetensors" if address.endswith(".safetensors") else ".ckpt"))
    if path.is_file() and not refresh and published.file_sha256(path) == digest:
        return path
    try:
        torch.hub.download_url_to_file(address, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise SaatError(f"cannot download {address}: {error}") from error
    return path


def _snapshot(repo: str, revision: str | None, digest: str, refresh: bool) -> Path:
    import huggingface_hub

    try:
        # Kept in huggingface_hub's cache; without a network, what is there is taken.
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=FILES, force_download=refresh)
        )
    except Exception as error:  # its errors have no common base, and depend on its HTTP library
        raise SaatError(f"cannot get hf://{repo}{f'@{revision}' if revision else ''}: {_first(error)}") from error
    record = published.read_record(folder)
    if digest and record["weights"]["sha256"] != digest:
        raise SaatError(f"hf://{repo} has weights with SHA-256 {record['weights']['sha256']}, not {digest}")
    return folder


def push(folder: Path, repo: str, private: bool = False, force: bool = False) -> str:
    """Send a published checkpoint to a repository on the Hugging Face Hub, which is made where there is none.

    Args:
        folder: the checkpoint; it is read and checked first.
        repo: `owner/repo`, with or without `hf://`. The token is huggingface_hub's own (`hf auth login`).
        private: of a new repository.
        force: exchange other weights that are there.

    Returns: the address of the commit.

    Errors: SaatError when it is not whole, other weights are there, or the Hub refuses.
    """
    import huggingface_hub

    match = HUB.fullmatch("hf://" + repo.removeprefix("hf://"))
    if match is None or match[2] or match[3]:
        raise SaatError(f"{repo}: expected OWNER/REPO")
    repo = match[1]
    record = published.read(folder)[1]
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if not force:
            _refuse_others(api, repo, record)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            allow_patterns=FILES,
            commit_message=f"{record['upstream']}.{record['tag']}",
        )
    except SaatError:
        raise
    except Exception as error:  # see _snapshot
        raise SaatError(f"cannot push to {repo}: {_first(error)}; is there a token (hf auth login)?") from error
    return str(getattr(commit, "commit_url", commit))


def _refuse_others(api: Any, repo: str, record: dict[str, Any]) -> None:
    """A repository holds one checkpoint; the same weights with a newer card may be pushed again."""
    import huggingface_hub

    if not api.file_exists(repo, published.RECORD_FILE):
        return
    there = Path(huggingface_hub.hf_hub_download(repo, published.RECORD_FILE)).read_bytes()
    try:
        same = published.parse_record(there, repo)["weights"]["sha256"] == record["weights"]["sha256"]
    except SaatError:
        same = False
    if not same:
        raise SaatError(f"{repo} holds another model: choose another repository, or pass --force to exchange it")


def _first(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
