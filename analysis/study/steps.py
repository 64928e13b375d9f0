"""The steps of a study: each one a `saat` command, with what it needs and what it leaves."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from saat.analysis.study.options import Options
from saat.analysis.study.results import read_json
from saat.analysis.study.subjects import Subject, chosen
from saat.errors import SaatError
from saat.files import write_text
from saat.pretrain import experiment
from saat.pretrain.recipe import load_recipe
from saat.upstream.attention import REGISTRY

CURVE_PARTS = 32  # a learning curve is saved, and its held-out loss computed, after each such part …
CURVE_PROBED = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # … and probed after these: early on things change faster


@dataclass(frozen=True)
class Step:
    """One command of a study."""

    name: str  # also of its log and of the file that says it is done
    argv: Callable[[], list[str]]  # after `saat`; asked for when the step starts, since it may name what others left
    needs: tuple[str, ...] = ()
    alone: bool = False  # nothing else may run beside it: it measures time
    leaves: tuple[Path, ...] = ()  # files; its command writes each as `unfinished`, and what was there stays till then
    scratch: tuple[Path, ...] = field(default=())  # folders to remove once it is done, or has failed
    replaces: str = ""  # steps (a glob of their names) whose files it leaves anew: once it is done, they are not


def unfinished(file: Path) -> Path:
    """Where a step writes the file, until it is done."""
    return file.with_name(f"unfinished-{file.name}")


def write_utterances(options: Options) -> Path:
    """The ids of all audio to pre-train on, in a file. Errors: SaatError where there is none."""
    file = options.out / "pretrain" / "utterances.txt"
    if not file.is_file():
        write_text(file, "".join(f"{name}\n" for name in options.corpora.pretrain_utterances()))
    return file


def plan(options: Options) -> list[Step]:
    """Every step, in the order in which they would run one by one."""
    subjects = chosen(options.upstreams)
    steps: list[Step] = []
    for seed in range(options.seeds):
        for subject in subjects:
            if subject.pretrained:
                steps += _pretrained(options, subject, seed)
                steps.append(_probe(options, subject, seed, _name("pretrain", subject.label, seed)))
    steps += [_control(options, subject) for subject in subjects if not subject.pretrained]
    if options.curves:
        for subject in subjects:
            if subject.label in options.curve_upstreams:
                steps += _curve(options, subject)
    timed = {subject.label for subject in subjects if subject.pretrained and subject.label == subject.upstream}
    if timed and ("saat_qk" in timed or _mark(options, "saat_qk").is_file()):
        steps += [_bench(options, timed, mode) for mode in ("inference", "training")]
    return steps


def _name(kind: str, label: str, seed: int | str) -> str:
    return f"{kind}-{label}-{seed}"


def _folder(options: Options, label: str, seed: int | str) -> Path:
    return options.out / "pretrain" / f"{label}-{seed}"


def newest(folder: Path) -> Path:
    """Errors: SaatError when the folder has no checkpoint."""
    found = list(experiment.checkpoints(folder).values())
    if not found:
        raise SaatError(
            f"no checkpoint in {folder}, though its pre-training is done: bring the last one back, or remove "
            f"done/pretrain-{folder.name}.json to pre-train it once more"
        )
    return found[-1]


def _device(options: Options) -> list[str]:
    return ["--device", options.device] if options.device else []


def _pretrain_argv(options: Options, subject: Subject, seed: int | str, override: str = "") -> list[str]:
    utterances = json.dumps(str(options.out / "pretrain" / "utterances.txt"))  # YAML would cut it at ` #`
    values = f"config.pretrain_expert.datarc.splits={utterances}"
    for more in (subject.override, override, _drawn_anew(subject, seed)):
        values += f",,{more}" if more else ""
    start = ["-i", str(_start(options, subject, seed))] if subject.init_from else []
    return [
        *("pretrain", "-u", subject.upstream, "-p", str(_folder(options, subject.label, seed)), "-a"),
        *("-c", str(options.kept_recipe), "--seed", str(seed if isinstance(seed, int) else 0)),
        *("--corpus", *options.corpora.pretrain, "-o", values, *start, *_device(options)),
    ]


def _drawn_anew(subject: Subject, seed: int | str) -> str:
    """What `-o` says so that another seed starts from other random numbers in R (or hashes with others) as well."""
    config = REGISTRY[subject.upstream].config
    if seed in (0, "curve") or subject.init_from or not hasattr(config, "seed"):
        return ""
    return f"config.model.attention.seed={seed}"


def _start(options: Options, subject: Subject, seed: int | str) -> Path:
    return options.out / "starts" / f"{subject.label}-{seed}.ckpt"


def _pretrained(options: Options, subject: Subject, seed: int) -> list[Step]:
    name = _name("pretrain", subject.label, seed)
    if not subject.init_from:
        return [Step(name, lambda: _pretrain_argv(options, subject, seed))]
    source, start = _folder(options, subject.init_from, seed), _start(options, subject, seed)
    utterances = str(options.out / "pretrain" / "utterances.txt")

    def make_start() -> list[str]:
        corpus = ["--corpus", *options.corpora.pretrain, "--splits", utterances]
        made = ["--fresh", "--seed", str(seed), "--out", str(unfinished(start))]
        return ["init-from", str(newest(source)), *corpus, *made]

    first = _name("start", subject.label, seed)
    return [
        Step(first, make_start, needs=(_name("pretrain", subject.init_from, seed),), leaves=(start,)),
        Step(name, lambda: _pretrain_argv(options, subject, seed), needs=(first,)),
    ]


def _probe_argv(options: Options, upstream: list[str], label: str, seeds: int) -> list[str]:
    """`upstream`: its name, and where its weights or sizes come from."""
    corpora = options.corpora
    return [
        *("probe", "-u", *upstream),
        *("--speaker", *corpora.speaker, "--phoneme", *corpora.phoneme),
        *(("--phones", corpora.phones) if corpora.phones else ()),
        *(("--splits", corpora.splits) if corpora.splits else ()),
        *(("--test-other", *corpora.test_other) if corpora.test_other and corpora.phones else ()),
        *("--seeds", str(seeds), "--features", str(options.features_folder / label)),
        *(("--dtype", options.dtype) if options.dtype else ()),
        *(("--steps", str(options.probe_steps)) if options.probe_steps else ()),
        *(("--batch", str(options.probe_batch)) if options.probe_batch else ()),
        *("--json", str(unfinished(options.out / "probes" / f"{label}.json")), *_device(options)),
    ]


def _probe_step(
    options: Options, name: str, label: str, argv: Callable[[], list[str]], needs: tuple[str, ...] = ()
) -> Step:
    leaves = (options.out / "probes" / f"{label}.json",)
    return Step(name, argv, needs, leaves=leaves, scratch=(options.features_folder / label,))


def _probe(options: Options, subject: Subject, seed: int, after: str) -> Step:
    label, folder = f"{subject.label}-{seed}", _folder(options, subject.label, seed)

    def argv() -> list[str]:
        return _probe_argv(options, [f"{subject.upstream}_local", "-k", str(newest(folder))], label, 1)

    return _probe_step(options, _name("probe", subject.label, seed), label, argv, needs=(after,))


def _control(options: Options, subject: Subject) -> Step:
    upstream = f"{subject.upstream}_untrained" if subject.kind == "untrained" else subject.upstream
    label = f"{subject.label}-all"  # its seeds are the probes' only
    before = read_json(options.out / "probes" / f"{label}.json") or []
    # Asked for fewer seeds than an earlier call, it keeps them all.
    seeds = max(options.seeds, len({entry["seed"] for entry in before}))

    def argv() -> list[str]:
        # The recipe's features and sizes; attention is a section of those variants that have such options.
        model = load_recipe(str(options.kept_recipe)).model
        if subject.kind == "features":
            model = {key: value for key, value in model.items() if key != "attention"}
        file = options.out / "models" / f"{subject.label}.yaml"
        write_text(file, yaml.safe_dump(model))
        return _probe_argv(options, [upstream, "-g", str(file)], label, seeds)

    step = _probe_step(options, _name("probe", subject.label, f"{seeds}-seeds"), label, argv)
    return replace(step, replaces=_name("probe", subject.label, "*-seeds"))


def _curve(options: Options, subject: Subject) -> list[Step]:
    every = max(1, options.curves // CURVE_PARTS)
    runner = {
        "total_steps": options.curves,
        "n_epochs": -1,
        "save_step": every,
        "eval_step": every,
        "max_keep": 2 * CURVE_PARTS,
    }
    override = ",,".join(f"config.runner.{key}={value}" for key, value in runner.items())
    name, folder = _name("pretrain", subject.label, "curve"), _folder(options, subject.label, "curve")
    steps = [Step(name, lambda: _pretrain_argv(options, subject, "curve", override))]
    # Where the steps cannot be shared out evenly the last part is longer.
    for step in sorted({min(part * every, options.curves) for part in CURVE_PROBED[:-1]} | {options.curves}):
        label = f"{subject.label}-curve-{step}"
        ckpt = experiment.checkpoint_path(folder, step)

        def argv(ckpt: Path = ckpt, label: str = label) -> list[str]:
            return _probe_argv(options, [f"{subject.upstream}_local", "-k", str(ckpt)], label, 1)

        steps.append(_probe_step(options, f"probe-{label}", label, argv, needs=(name,)))
    return steps


def _bench(options: Options, upstreams: set[str], mode: str) -> Step:
    rounds = options.bench_rounds if mode == "inference" else max(1, options.bench_rounds // 2)
    file = options.out / "bench" / f"{mode}.json"
    # Ratios are formed within one run: more upstreams are timed anew, together with those of before.
    names = [name for name in REGISTRY if name in upstreams or _mark(options, name).is_file()]
    how = ["--length", str(options.bench_length), "--hidden", str(options.bench_hidden), "--rounds", str(rounds)]
    digest = hashlib.sha256(" ".join([*names, *how]).encode()).hexdigest()[:8]

    def argv() -> list[str]:
        return [
            *("bench", *how, "--upstreams", *names, *(["--train"] if mode == "training" else [])),
            *("--corpus", options.corpora.speaker[0], "--json", str(unfinished(file)), *_device(options)),
        ]

    return Step(f"bench-{mode}-{digest}", argv, alone=True, leaves=(file,), replaces=f"bench-{mode}-*")


def _mark(options: Options, label: str) -> Path:
    return options.out / "done" / f"{_name('pretrain', label, 0)}.json"
