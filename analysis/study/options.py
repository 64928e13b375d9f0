"""What a study was asked for, and the folder it lives in."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saat.errors import SaatError
from saat.files import write_text
from saat.pretrain.recipe import load_recipe, recipe_file
from saat.upstream.audio import find_audio
from saat.upstream.config import read_yaml

STRIDE = 480  # samples in a token, for which utterances are long enough


@dataclass(frozen=True)
class Corpora:
    """Where the audio and its labels are; they make a study what it is, together with the recipe."""

    pretrain: list[str]
    speaker: list[str]
    phoneme: list[str]
    phones: str | None = None  # without: no phoneme probes
    splits: str | None = None
    test_other: list[str] = field(default_factory=list)

    def test_utterances(self) -> set[str]:
        """Ids that no model may see in pre-training: what a probe is tested on, whether listed or drawn; listed dev."""
        from saat.downstream.config import DataConfig
        from saat.downstream.corpus import read_corpus, read_lists

        ids = {path.stem for folder in self.test_other for path in find_audio(folder)}
        if self.splits:
            lists = read_lists(self.splits)
            ids.update(*(lists.get(name, ()) for name in ("dev", "test")))
        else:
            for folders in (self.speaker, self.phoneme):
                ids.update(u.id for u in read_corpus(DataConfig(folders), STRIDE)["test"])
        return ids

    def pretrain_utterances(self) -> list[str]:
        """Ids of all audio that may be pre-trained on, sorted. Errors: SaatError where nothing is left."""
        kept = {path.stem for folder in self.pretrain for path in find_audio(folder)} - self.test_utterances()
        if not kept:
            raise SaatError(f"every utterance below {', '.join(self.pretrain)} is one to test on")
        return sorted(kept)


@dataclass(frozen=True)
class Options:
    """`saat study`'s command line."""

    corpora: Corpora
    recipe: str
    out: Path
    upstreams: list[str] | None = None
    seeds: int = 1  # pre-trainings of each subject
    jobs: int = 1  # steps at once
    curves: int = 0  # steps of the pre-trainings for the learning curves; 0: none
    curve_upstreams: tuple[str, ...] = ("saat_qk", "saat_q", "saat_ours")
    bench_length: int = 500  # tokens; the paper's
    bench_hidden: int = 768
    bench_rounds: int = 5
    probe_steps: int | None = None  # default: `saat probe`'s
    probe_batch: int | None = None  # utterances; default: `saat probe`'s
    features: Path | None = None  # where the probes' lie until they are trained; default: in `out`
    dtype: str | None = None  # of those; default: `saat probe`'s
    device: str | None = None

    @property
    def features_folder(self) -> Path:
        return self.features or self.out / "features"

    @property
    def kept_recipe(self) -> Path:
        """The study's own copy: what every step reads, whatever becomes of the file it was made from."""
        return self.out / "recipe.yaml"

    def identity(self) -> dict[str, Any]:
        """What must stay the same where a study goes on; of the recipe its values, not its comments."""
        values = json.dumps(read_yaml(recipe_file(self.recipe)), sort_keys=True)
        return {
            "corpora": asdict(self.corpora),
            "recipe": hashlib.sha256(values.encode()).hexdigest(),
            "probe_steps": self.probe_steps,
            "probe_batch": self.probe_batch,
            "dtype": self.dtype,
        }


def check_corpora(options: Options) -> None:
    """Whether there is audio to pre-train on, and the probes can be trained, before hours of pre-training; only once,
    since it reads every header.

    Errors: SaatError as the probes raise them; for a single speaker.
    """
    from saat.downstream.config import DataConfig
    from saat.downstream.data import LabelledCorpus, other_speakers

    if (options.out / "study.json").is_file():
        return
    corpora = options.corpora
    for labels, folders in (("speaker", corpora.speaker), ("phone", corpora.phoneme)):
        if labels == "phone" and not corpora.phones:
            continue
        corpus = LabelledCorpus(labels, DataConfig(folders, corpora.splits, corpora.phones), STRIDE)
        for split in corpus.splits:
            corpus.split(split)
        if len(corpus.classes) < 2:
            raise SaatError(f"{', '.join(folders)} has one {labels}, {corpus.classes[0]}: nothing can be told apart")
        if labels == "phone" and corpora.test_other:
            other_speakers(corpora.test_other, corpus, corpora.phones)
    corpora.pretrain_utterances()


def open_folder(options: Options) -> None:
    """Makes the folder, or checks that it is this study's. More upstreams, seeds, or curves may be asked for later.

    Errors: SaatError where another study, or something else, lies there; for a recipe that cannot be read.
    """
    load_recipe(options.recipe)
    marker = options.out / "study.json"
    asked = options.identity()
    if marker.is_file():
        try:
            before = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SaatError(f"{marker} cannot be read: {error}; give another --out") from error
        different = sorted(key for key in asked if before.get(key) != asked[key])
        if different:
            raise SaatError(
                f"{options.out} holds a study with other {', '.join(different)}: {before}; give the same again, "
                "or another --out"
            )
        curves = before.get("curves", 0)
        if curves and options.curves not in (0, curves):
            raise SaatError(f"--curves {options.curves}: those in {options.out} are of {curves} steps; give that again")
        if options.curves and not curves:
            write_text(marker, json.dumps(before | {"curves": options.curves}, indent=1) + "\n")
    else:
        _begin(options, marker, asked)
    if not options.kept_recipe.is_file():
        write_text(options.kept_recipe, recipe_file(options.recipe).read_text(encoding="utf-8"))


def _begin(options: Options, marker: Path, asked: dict[str, Any]) -> None:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        own = recipe_file(options.recipe).resolve()  # someone may keep it there
        strangers = [path.name for path in options.out.iterdir() if path.resolve() != own]
        if strangers:
            raise SaatError(f"--out {options.out} is not empty ({', '.join(strangers[:3])} …) and holds no study")
        write_text(marker, json.dumps(asked | {"curves": options.curves}, indent=1) + "\n")
    except OSError as error:
        raise SaatError(f"--out: cannot write in {options.out}: {error}") from error
