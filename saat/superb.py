"""`saat superb`: S3PRL's own SUPERB tasks, in a checkout of S3PRL, with SUPERB's settings, into one table.

Each task is trained by S3PRL's run_downstream.py with S3PRL's config (frozen upstream, weighted sum of the hidden
states), once a learning rate; the best on dev is evaluated on test. Every result is kept, so that the same command goes
on where it stopped. Source: Yang et al., SUPERB, Interspeech 2021, and S3PRL's downstream/docs/superb.md.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from saat.errors import SaatError, did_you_mean

RATES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "1e-7")  # SUPERB's search


@dataclass(frozen=True)
class Task:
    """One task of SUPERB, as S3PRL runs it."""

    title: str
    folder: str  # S3PRL's -d
    needs: dict[str, str]  # what the data file must name: the key of S3PRL's config it sets
    about: str  # what these are, for people who have not got them
    metric: str
    higher_is_better: bool
    best: str = "dev-best.ckpt"
    test: str = "test"
    config: str = "config.yaml"
    folds: tuple[dict[str, str], ...] = field(default=({},))  # cross-validation: config values of each part


EXPERT = "downstream_expert"
DATARC = f"{EXPERT}.datarc"
TASKS = {
    "pr": Task(
        "phoneme recognition",
        "ctc",
        {"root": f"{EXPERT}.corpus.path"},
        "LibriSpeech (train-clean-100, dev-clean, test-clean)",
        "per",
        False,
        config="libriphone.yaml",
    ),
    "asr": Task(
        "speech recognition",
        "asr",
        {"root": f"{DATARC}.libri_root", "lengths": f"{DATARC}.bucket_file"},
        "LibriSpeech as for pr, and the folder that S3PRL's preprocess/generate_len_for_bucket.py makes of it",
        "wer",
        False,
        "dev-clean-best.ckpt",
        "test-clean",
    ),
    "ks": Task(
        "keyword spotting",
        "speech_commands",
        {"root": f"{DATARC}.speech_commands_root", "test_root": f"{DATARC}.speech_commands_test_root"},
        "Speech Commands v0.01, and its test set",
        "acc",
        True,
    ),
    "sid": Task(
        "speaker identification",
        "voxceleb1",
        {"root": f"{DATARC}.file_path"},
        "VoxCeleb1 (dev/wav, test/wav)",
        "acc",
        True,
    ),
    "er": Task(
        "emotion recognition",
        "emotion",
        {"root": f"{DATARC}.root"},
        "IEMOCAP (Session1 … Session5)",
        "acc",
        True,
        folds=tuple({f"{DATARC}.test_fold": f"fold{i}"} for i in range(1, 6)),
    ),
    "ic": Task(
        "intent classification",
        "fluent_commands",
        {"root": f"{DATARC}.file_path"},
        "Fluent Speech Commands (wavs, data)",
        "acc",
        True,
    ),
}


@dataclass(frozen=True)
class Settings:
    """What all runs share. `steps` shortens training (SUPERB's own number when None)."""

    s3prl: Path  # <checkout>/s3prl
    out: Path
    upstream: str
    ckpt: str | None
    rates: tuple[str, ...] = RATES
    steps: int | None = None
    device: str = "cuda"


def run_superb(settings: Settings, tasks: list[str], data: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs the tasks, writes `superb.json` and `superb.md` into `settings.out`, and returns the rows.

    Args:
        settings: what to run on.
        tasks: keys of TASKS.
        data: for each task the keys of its `needs`; and under `config`, other values of S3PRL's config by dotted name.

    Errors: SaatError for an unknown task or data key, or an output folder of other settings. A task that cannot run
    becomes a row that says why.
    """
    for name in [*tasks, *data]:
        if name not in TASKS:
            raise SaatError(f"unknown task '{name}': {did_you_mean(name, TASKS)}")
    for name, given in data.items():
        for key in given or {}:
            if key not in (*TASKS[name].needs, "config"):
                raise SaatError(f"data of {name}: unknown '{key}': {did_you_mean(key, (*TASKS[name].needs, 'config'))}")
    _claim(settings)
    rows = []
    for name in tasks:
        rows.append({"task": name, "title": TASKS[name].title, "metric": TASKS[name].metric}
                    | _task(settings, name, data.get(name) or {}))  # fmt: skip
        write(settings.out / "superb.json", json.dumps(rows, indent=1) + "\n")
        write(settings.out / "superb.md", as_markdown(rows, settings) + "\n")
    return rows


def _claim(settings: Settings) -> None:
    """An output folder belongs to one upstream, checkpoint and number of steps."""
    mine = {"upstream": settings.upstream, "checkpoint": settings.ckpt, "steps": settings.steps}
    path = settings.out / "settings.json"
    settings.out.mkdir(parents=True, exist_ok=True)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != mine:
        raise SaatError(
            f"{settings.out} holds results of other settings ({path.read_text().strip()}): choose another --out"
        )
    write(path, json.dumps(mine) + "\n")


def _task(settings: Settings, name: str, given: dict[str, Any]) -> dict[str, Any]:
    task = TASKS[name]
    missing = [key for key in task.needs if not given.get(key) or not Path(given[key]).expanduser().exists()]
    if missing:
        return {"problem": f"data missing ({', '.join(missing)}): needs {task.about}"}
    sign = 1 if task.higher_is_better else -1
    best, problems = None, []
    for rate in settings.rates:
        scores = []
        for i, fold in enumerate(task.folds):
            folder = settings.out / name / f"lr-{rate}" / (f"fold{i + 1}" if len(task.folds) > 1 else "")
            try:
                scores.append(_trained(settings, task, given, rate, fold, folder))
            except SaatError as error:
                problems.append(str(error))
                break
        if len(scores) == len(task.folds):
            dev = sum(scores) / len(scores)
            print(f"{name} lr {rate}: dev {task.metric} {dev:.4f}", file=sys.stderr, flush=True)
            if best is None or sign * dev > sign * best[0]:
                best = (dev, rate)
    if best is None:
        return {"problem": problems[-1]}
    folders = [
        settings.out / name / f"lr-{best[1]}" / (f"fold{i + 1}" if len(task.folds) > 1 else "")
        for i in range(len(task.folds))
    ]
    try:
        tests = [_tested(settings, task, folder) for folder in folders]
    except SaatError as error:
        return {"problem": str(error)}
    return {"dev": best[0], "test": sum(tests) / len(tests), "lr": best[1], "problems": problems}


def _trained(
    settings: Settings, task: Task, given: dict[str, Any], rate: str, fold: dict[str, str], folder: Path
) -> float:
    """Best score on dev of one training; kept in `dev.json`."""
    kept = folder / "dev.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))["score"]
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((settings.s3prl / "downstream" / task.folder / task.config).read_text(encoding="utf-8"))
    values = {key: str(Path(given[name]).expanduser().resolve()) for name, key in task.needs.items()}
    values |= {**fold, **(given.get("config") or {}), "optimizer.lr": float(rate)}
    if settings.steps is not None:
        values["runner.total_steps"] = settings.steps
        for key in ("log_step", "eval_step", "save_step"):
            values[f"runner.{key}"] = min(config["runner"][key], settings.steps)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    upstream = ["-u", settings.upstream, *(["-k", settings.ckpt] if settings.ckpt else [])]
    arguments = [
        "-m",
        "train",
        *upstream,
        "-d",
        task.folder,
        "-c",
        str(folder / "config.yaml"),
        "-p",
        str(folder),
        "-a",
    ]
    _s3prl(settings, folder, "train.log", arguments)
    score = _best_score(folder / task.best)
    write(kept, json.dumps({"score": score}) + "\n")
    return score


def _best_score(path: Path) -> float:
    """S3PRL's experts keep their best score on dev among their weights."""
    import torch

    from saat.upstream.checkpoint import S3PRLS, allowing

    if not path.is_file():
        raise SaatError(f"trained, but dev never got better than at the start: too few steps? (see {path.parent})")
    with allowing(S3PRLS):
        return float(torch.load(path, map_location="cpu", weights_only=True)["Downstream"]["best_score"])


def _tested(settings: Settings, task: Task, folder: Path) -> float:
    kept = folder / "test.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))["score"]
    _s3prl(settings, folder, "test.log", ["-m", "evaluate", "-t", task.test, "-e", str(folder / task.best)])
    found = re.findall(
        rf"^{task.test} {task.metric}: ([\d.eE+-]+)", (folder / "test.log").read_text(errors="replace"), re.M
    )
    if not found:
        raise SaatError(f"{folder / 'test.log'} has no line '{task.test} {task.metric}: …'")
    write(kept, json.dumps({"score": float(found[-1])}) + "\n")
    return float(found[-1])


def _s3prl(settings: Settings, folder: Path, log: str, arguments: list[str]) -> None:
    """One run of S3PRL's script, in its own folder, as its relative paths want."""
    script = str(settings.s3prl / "run_downstream.py")
    command = [sys.executable, "-m", "saat.cli", "run", script, "--device", settings.device, *arguments]
    checkout = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), checkout]))
    with (folder / log).open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=settings.s3prl, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": search}
        )
    if done.returncode:
        lines = (folder / log).read_text(errors="replace").strip().splitlines()
        raise SaatError(f"{lines[-1][:200] if lines else 'no output'} (see {folder / log})")


def as_markdown(rows: list[dict[str, Any]], settings: Settings) -> str:
    """The table; scores in percent, arrows say which way is better."""
    lines = ["| task | metric | test | dev | learning rate |", "|---|---|---|---|---|"]
    for row in rows:
        arrow = "↑" if TASKS[row["task"]].higher_is_better else "↓"
        scores = [f"{_percent(row, 'test'):.2f}", f"{_percent(row, 'dev'):.2f}", row["lr"]] if "test" in row else None
        cells = scores or [row["problem"].replace("|", "/"), "", ""]
        lines.append(f"| {row['title']} ({row['task']}) | {row['metric']} {arrow} | {' | '.join(cells)} |")
    short = f", {settings.steps} steps each instead of SUPERB's" if settings.steps is not None else ""
    given = f" -k {settings.ckpt}" if settings.ckpt else ""
    return "\n".join([*lines, "", f"-u {settings.upstream}{given}; learning rates {', '.join(settings.rates)}{short}"])


def _percent(row: dict[str, Any], key: str) -> float:
    """S3PRL's WER is in percent, its PER and accuracies are shares."""
    return row[key] if row["metric"] == "wer" else 100 * row[key]


def write(path: Path, text: str) -> None:
    """Atomic."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def add_command(commands: Any) -> None:
    """`saat superb`."""
    p = commands.add_parser("superb", help="S3PRL's SUPERB tasks on an upstream, into one table")
    p.add_argument("--s3prl", required=True, metavar="CHECKOUT", help="the folder of S3PRL's sources")
    p.add_argument("-u", "--upstream", required=True)
    p.add_argument("-k", "--ckpt", help="default: the store's, for saat_*")
    p.add_argument("--tasks", default=",".join(TASKS), help="default: %(default)s")
    p.add_argument("--data", required=True, metavar="FILE", help="YAML: for each task where its data is")
    p.add_argument("--lrs", default=",".join(RATES), help="learning rates to try (default: SUPERB's, %(default)s)")
    p.add_argument("--steps", type=int, help="train so long only (default: SUPERB's number)")
    p.add_argument("--out", default="result/superb", metavar="DIR", help="default: %(default)s")
    p.add_argument("--device", help="default: cuda where there is one, else cpu")
    p.set_defaults(call=_call)


def _call(o: Any) -> None:
    import torch

    from saat.link import pretrain_folder
    from saat.sharing.store import find
    from saat.upstream.attention import REGISTRY
    from saat.upstream.config import read_yaml

    rates = tuple(o.lrs.split(","))
    for rate in rates:
        if not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", rate):
            raise SaatError(f"--lrs: '{rate}' is not a learning rate")
    name, _, tag = o.upstream.partition(".")
    ckpt = str(Path(o.ckpt).expanduser().resolve()) if o.ckpt and "://" not in o.ckpt else o.ckpt
    if name in REGISTRY and REGISTRY[name].attention is not None and ckpt is None:
        ckpt, o.upstream = str(find(name, tag or None)), f"{name}_local"  # the same one in every run
    device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(
        pretrain_folder(o.s3prl).parent, Path(o.out).expanduser().resolve(), o.upstream, ckpt, rates, o.steps, device
    )
    rows = run_superb(settings, o.tasks.split(","), read_yaml(o.data))
    print(as_markdown(rows, settings))
