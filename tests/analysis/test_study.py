"""What a study plans, and what it does not begin."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from saat.analysis.study.options import Corpora, Options, open_folder
from saat.analysis.study.run import only_one
from saat.analysis.study.steps import plan, write_utterances
from saat.analysis.study.subjects import SUBJECTS, chosen
from saat.cli import parser
from saat.downstream.config import DataConfig
from saat.downstream.corpus import read_corpus
from saat.errors import SaatError
from saat.pretrain.recipe import parse_overrides
from saat.upstream import hubconf


def test_a_step_needs_what_it_takes(options):
    steps = {step.name: step for step in plan(options)}
    assert list(steps)[:2] == ["pretrain-saat_qk-0", "probe-saat_qk-0"]
    assert steps["probe-saat_ours-1"].needs == ("pretrain-saat_ours-1",)
    assert steps["start-saat_ours_from_qk-1"].needs == ("pretrain-saat_qk-1",)
    assert steps["pretrain-saat_ours_from_qk-1"].needs == ("start-saat_ours_from_qk-1",)
    assert steps["probe-saat_mel-2-seeds"].needs == ()
    assert [name.rpartition("-")[0] for name, step in steps.items() if step.alone] == [
        "bench-inference",
        "bench-training",
    ]
    assert len(steps) == 2 * (2 + 2 + 3) + 1 + 2
    names = set(steps)
    assert all(set(step.needs) <= names for step in steps.values())
    argv = steps["pretrain-saat_ours_from_qk-1"].argv()
    assert argv[:3] == ["pretrain", "-u", "saat_ours"] and argv[argv.index("-i") + 1].endswith(
        "saat_ours_from_qk-1.ckpt"
    )


def test_more_is_asked_for_later(options):
    """More upstreams are timed with those of before; more seeds reach the controls; other curves are refused."""

    def names(**changes):
        return {step.name: step for step in plan(replace(options, **changes))}

    def timed(steps):
        argv = next(step for name, step in steps.items() if name.startswith("bench-inference")).argv()
        return argv[argv.index("--upstreams") + 1 : argv.index("--corpus")]

    first = names(upstreams=["saat_qk", "saat_q"])
    assert timed(first) == ["saat_qk", "saat_q"]
    assert "probe-saat_mel-3-seeds" in names(seeds=3) and "probe-saat_mel-3-seeds" not in names(seeds=2)

    open_folder(options)
    (options.out / "done").mkdir()
    (options.out / "done" / "pretrain-saat_q-0.json").touch()
    assert timed(names(upstreams=["saat_qk", "saat_ours"])) == ["saat_qk", "saat_q", "saat_ours"]
    assert not any("bench" in name for name in names(upstreams=["saat_ours"]))
    (options.out / "done" / "pretrain-saat_qk-0.json").touch()
    assert timed(names(upstreams=["saat_ours"])) == ["saat_qk", "saat_q", "saat_ours"]
    assert set(names(bench_length=100)).isdisjoint(name for name in names() if name.startswith("bench-"))
    open_folder(replace(options, curves=40))
    open_folder(options)
    with pytest.raises(SaatError, match="--curves 80: those in .* are of 40 steps"):
        open_folder(replace(options, curves=80))


def test_each_seed_draws_its_own_start(options):
    """R as well as the other weights; what starts from maps has nothing to draw."""
    names = ["saat_qk", "saat_syn_random", "saat_ours_authors_init", "saat_ours_from_qk", "saat_simple_lsh"]
    steps = {step.name: step for step in plan(replace(options, upstreams=names, curves=40))}

    def drawn(name):
        argv = steps[f"pretrain-{name}"].argv()
        return parse_overrides(argv[argv.index("-o") + 1])[0].get("model", {}).get("attention", {})

    assert drawn("saat_syn_random-1") == {"seed": 1} and drawn("saat_simple_lsh-1") == {"seed": 1}
    assert drawn("saat_ours_authors_init-1") == {"init": "authors", "seed": 1}
    for name in ("saat_syn_random-0", "saat_qk-1", "saat_ours_from_qk-1"):
        assert drawn(name) == {}
    assert drawn("saat_ours_authors_init-0") == {"init": "authors"}


def test_fewer_seeds_keep_what_the_controls_have(options):
    open_folder(options)
    before = options.out / "probes" / "saat_mel-all.json"
    before.parent.mkdir()
    before.write_text(json.dumps([{"seed": seed} for seed in range(3)]))
    argv = {step.name: step for step in plan(replace(options, seeds=1))}["probe-saat_mel-3-seeds"].argv()
    assert argv[argv.index("--seeds") + 1] == "3"


def test_controls_need_no_checkpoint(options, tmp_path):
    """Alone too they have the recipe's features and sizes; a section that only some variants know is left out."""
    recipe = tmp_path / "mine.yaml"
    model = {"audio": {"n_mels": 20}, "transformer": {"hidden_size": 24}, "attention": {"init": "authors"}}
    recipe.write_text(json.dumps({"model": model}))
    options = replace(options, recipe=str(recipe), upstreams=["saat_mel", "saat_ours_untrained"])
    open_folder(options)
    for step in plan(options):
        argv = step.argv()
        upstream = argv[argv.index("-u") + 1]
        config = getattr(hubconf, upstream)(model_config=argv[argv.index("-g") + 1]).model_config
        assert config.audio.n_mels == 20 and config.transformer.hidden_size == 24 and not step.needs
        assert config.attention is None or config.attention.init == "authors"


def test_without_phones_there_are_no_phoneme_probes(options):
    corpora = replace(options.corpora, phones=None)
    step = next(s for s in plan(replace(options, corpora=corpora)) if s.name == "probe-saat_mel-2-seeds")
    open_folder(options)
    assert "--speaker" in step.argv() and not {"--phones", "--test-other"} & set(step.argv())


@pytest.mark.parametrize("name", ["out", "study #2", "run: big"])
def test_any_folder_will_do(options, tmp_path, name):
    """The path reaches the recipe as it is, though YAML has a meaning for such signs."""
    step = next(step for step in plan(replace(options, out=tmp_path / name)) if step.name == "pretrain-saat_qk-0")
    argv = step.argv()
    config, _ = parse_overrides(argv[argv.index("-o") + 1])
    assert config["pretrain_expert"]["datarc"]["splits"] == str(tmp_path / name / "pretrain" / "utterances.txt")


def test_the_recipe_of_a_study_is_its_own(options, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("runner: {total_steps: 9}\n")
    options = replace(options, recipe=str(recipe))
    open_folder(options)
    recipe.write_text("# what it is for\nrunner: {total_steps: 9}\n")
    open_folder(options)
    argv = plan(options)[0].argv()
    assert Path(argv[argv.index("-c") + 1]).read_text() == "runner: {total_steps: 9}\n"
    recipe.write_text("runner: {total_steps: 10}\n")
    with pytest.raises(SaatError, match="holds a study with other recipe"):
        open_folder(options)


def test_unknown_upstreams_and_starts_without_a_source():
    with pytest.raises(SaatError, match="unknown upstream 'saat_our': did you mean 'saat_ours'"):
        chosen(["saat_our"])
    with pytest.raises(SaatError, match="starts from the maps of saat_qk: add it"):
        chosen(["saat_ours_from_qk"])
    assert len(chosen(None)) == len(SUBJECTS) == 17


def test_no_test_utterance_is_pretrained_on(tmp_path, make_corpus):
    audio = make_corpus(speakers=2, utterances=6).folder
    ids = sorted(path.stem for path in audio.rglob("*.flac"))
    splits = tmp_path / "splits"
    splits.mkdir()
    for split, names in (("train", ids[4:8]), ("dev", ids[:2]), ("test", ids[2:4])):
        (splits / f"{split}_split.txt").write_text("\n".join(names))
    folders = [str(audio)]
    listed = Options(Corpora(folders, folders, folders, splits=str(splits)), "mini", tmp_path / "listed")
    assert write_utterances(listed).read_text().split() == ids[4:]
    drawn = Options(Corpora(folders, folders, folders), "mini", tmp_path / "drawn")
    test = {utterance.id for utterance in read_corpus(DataConfig(folders), 480)["test"]}
    assert test and write_utterances(drawn).read_text().split() == [name for name in ids if name not in test]
    nothing = Corpora(folders, folders, folders, splits=str(splits), test_other=folders)
    with pytest.raises(SaatError, match="every utterance"):
        write_utterances(Options(nothing, "mini", tmp_path / "nothing"))


def test_the_folder_of_another_study_is_left_alone(options, tmp_path):
    open_folder(options)
    open_folder(options)
    other = Options(Corpora(["/pre2"], ["/spk"], ["/ph"]), "mini", options.out)
    with pytest.raises(SaatError, match="holds a study with other corpora"):
        open_folder(other)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(SaatError, match="not empty"):
        open_folder(Options(options.corpora, "mini", tmp_path / "thesis"))
    with (
        only_one(options.out),
        pytest.raises(SaatError, match="another `saat study` is at work"),
        only_one(options.out),
    ):
        pass


def test_the_commands_of_the_docs_are_understood():
    root = Path(__file__).resolve().parents[2]
    found = 0
    for page in ("README.md", "docs/study.md"):
        text = (root / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("    saat study ") or line.startswith("    saat report "):
                parser().parse_args(shlex.split(line)[1:])
                found += 1
    assert found == 3
