"""The command `saat heads`."""

from pathlib import Path
from typing import Any

from saat.errors import SaatError


def add_command(commands: Any) -> None:
    """`saat heads`."""
    p = commands.add_parser("heads", help="what each attention head of a model looks at: a table and maps")
    p.add_argument("-u", "--upstream", required=True)
    p.add_argument("-k", "--ckpt", help="default: the store's")
    p.add_argument("--corpus", nargs="+", metavar="FOLDER", help="audio; not needed where weights ignore the input")
    p.add_argument("--utterances", type=int, default=50, metavar="N", help="drawn from it (default: %(default)s)")
    p.add_argument("--out", metavar="DIR", help="for maps.png: the longest utterance's map of every head")
    p.add_argument("--json", metavar="FILE", help="a list of objects, one a layer and head")
    p.set_defaults(call=_call)


def _call(o: Any) -> None:
    from tqdm import tqdm

    from saat.analysis.bench import write_json
    from saat.analysis.heads_report import as_table, draw, summarise
    from saat.analysis.maps import corpus_maps, load_model, some_utterances
    from saat.sharing.store import find
    from saat.upstream.attention import variant

    name, _, tag = o.upstream.partition(".")
    entry = variant(name)
    ckpt = o.ckpt if o.ckpt or entry.attention is None else find(name, tag or None)
    model = load_model(ckpt, name)
    files = []
    if entry.input_dependent:
        if not o.corpus:
            raise SaatError(f"{name}'s weights depend on the input: name a folder of audio, --corpus FOLDER")
        files = some_utterances(o.corpus, o.utterances)
    maps = corpus_maps(model, tqdm(files, unit="utterance", disable=None))
    rows, longest = summarise(name, maps)
    limit = model.model_config.transformer.max_length
    print(as_table(rows))
    if entry.input_dependent:
        print(f"{rows[0]['utterances']} utterances; of those longer than {limit} tokens the first {limit}")
    else:
        print(f"the same weights for every utterance, {limit} tokens")
    if o.json:
        write_json(rows, Path(o.json))
    if o.out:
        print(draw(longest, Path(o.out) / "maps.png", name))
