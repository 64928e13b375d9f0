"""The command `saat init-from`."""

from typing import Any

FORMS = ("position", "relative")


def add_command(commands: Any) -> None:
    """`saat init-from`."""
    p = commands.add_parser("init-from", help="a saat_ours whose R is the mean attention map of a saat_qk or saat_q")
    p.add_argument("ckpt", metavar="CKPT", help="the pre-trained saat_qk or saat_q")
    p.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="audio to average over: folders, lists")
    p.add_argument("--splits", metavar="PATH", help="utterance ids, or a folder with train_split.txt: only these")
    p.add_argument("--out", required=True, metavar="FILE", help="the checkpoint of saat_ours to write")
    p.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="mean by query and key position, or by their distance alone (default: %(default)s)",
    )
    p.add_argument("--layer", type=int, metavar="N", help="the maps of one layer, the first being 1 (default: all)")
    p.add_argument("--utterances", type=int, metavar="N", help="so many of the long enough ones (default: all)")
    p.add_argument("--length", type=int, metavar="L", help="tokens of a map (default: the checkpoint's max_length)")
    p.add_argument("--fresh", action="store_true", help="all weights but R as a new pre-training draws them")
    p.add_argument("--seed", type=int, help="of these: run_pretrain.py's (default: its default)")
    p.add_argument("--force", action="store_true", help="overwrite FILE")
    p.set_defaults(call=_call)


def _call(o: Any) -> None:
    from saat.analysis.init_from import init_from
    from saat.pretrain.plan import SEED

    print(
        init_from(
            o.ckpt,
            o.corpus,
            o.out,
            splits=o.splits,
            form=o.form,
            layer=o.layer,
            utterances=o.utterances,
            fresh=o.fresh,
            seed=SEED if o.seed is None else o.seed,
            length=o.length,
            force=o.force,
        )
    )
