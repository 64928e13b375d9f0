"""The commands about checkpoints: their options. What they do lies in modules that are imported when they run."""

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add them to the sub-parsers of `saat`."""
    p = commands.add_parser("publish", help="put a checkpoint into the store, with a model card")
    p.add_argument("checkpoint", help="a states-N.ckpt; or saat_ours.TAG, or its folder, to add probes")
    _store(p)
    p.add_argument("--name", metavar="UPSTREAM", help="the upstream it must be of, such as saat_ours")
    p.add_argument("--tag", help="default: the name of the checkpoint's folder")
    p.add_argument("--probe", nargs="+", default=[], metavar="FOLDER", help="probe runs whose test accuracy to record")
    p.add_argument("--licence", "--license", metavar="ID", help="of the weights, such as CC-BY-4.0")
    p.set_defaults(call=_publish)

    p = commands.add_parser("pull", help="bring a published checkpoint into the store")
    p.add_argument("source", help="hf://owner/repo[@revision], https://…/model.safetensors#sha256=HEX, or a folder")
    _store(p)
    p.add_argument("--tag", help="default: the one it was published with")
    p.add_argument("--refresh", action="store_true", help="download again")
    p.set_defaults(call=_pull)

    p = commands.add_parser("push", help="send a published checkpoint to the Hugging Face Hub")
    p.add_argument("checkpoint", help="saat_ours.TAG, saat_ours (the default one), or a folder")
    p.add_argument("repo", help="owner/repo; made where there is none")
    p.add_argument("--private", action="store_true", help="a new repository is private")
    p.add_argument("--force", action="store_true", help="exchange another model that is there")
    p.set_defaults(call=_push)

    p = commands.add_parser("import", help="S3PRL's Audio ALBERT, Mockingjay or TERA as a checkpoint of saat_qk")
    p.add_argument("checkpoint", help="S3PRL's file")
    p.add_argument("out", help="the file to write, such as imported/states-200000.ckpt")
    p.add_argument("--force", action="store_true", help="overwrite it")
    p.set_defaults(call=_import)

    p = commands.add_parser("export", help="a checkpoint for programs without saat")
    p.add_argument("checkpoint", help="a states-N.ckpt, saat_qk.TAG, or a published folder")
    p.add_argument("out", help="the file to write")
    p.add_argument(
        "--format",
        required=True,
        choices=["s3prl", "onnx"],
        help="s3prl: saat_qk for audio_albert_local; onnx: waveforms to hidden states",
    )
    p.add_argument("--force", action="store_true", help="overwrite it")
    p.set_defaults(call=_export)


def _store(p: argparse.ArgumentParser) -> None:
    p.add_argument("--store", metavar="FOLDER", help="default: $SAAT_CHECKPOINTS, or in the user's cache")
    p.add_argument("--default", action="store_true", help="make it what -u NAME takes without a tag")
    p.add_argument("--force", action="store_true", help="exchange what is published under this tag")


def _publish(o: argparse.Namespace) -> None:
    from saat.sharing import actions

    print(actions.publish(o.checkpoint, o.store, o.name, o.tag, o.probe, o.licence, o.default, o.force))


def _pull(o: argparse.Namespace) -> None:
    from saat.sharing import actions

    print(actions.pull(o.source, o.store, o.tag, o.default, o.force, o.refresh))


def _push(o: argparse.Namespace) -> None:
    from saat.sharing import actions

    print(actions.push(o.checkpoint, o.repo, o.private, o.force))


def _import(o: argparse.Namespace) -> None:
    from saat.sharing.convert import import_s3prl

    print(import_s3prl(o.checkpoint, o.out, o.force))


def _export(o: argparse.Namespace) -> None:
    if o.format == "onnx":
        from saat.sharing.onnx_export import export_onnx as export
    else:
        from saat.sharing.convert import export_s3prl as export
    print(export(o.checkpoint, o.out, o.force))
