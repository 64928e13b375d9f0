"""The learning-rate search of each task, and the table of all."""

import json
import sys
from pathlib import Path
from typing import Any

from saat.errors import SaatError, did_you_mean
from saat.files import write_text
from saat.superb.runs import Settings, tested, trained
from saat.superb.tasks import TASKS


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
        write_text(settings.out / "superb.json", json.dumps(rows, indent=1) + "\n")
        write_text(settings.out / "superb.md", as_markdown(rows, settings) + "\n")
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
    write_text(path, json.dumps(mine) + "\n")


def _task(settings: Settings, name: str, given: dict[str, Any]) -> dict[str, Any]:
    task = TASKS[name]
    missing = [key for key in task.needs if not given.get(key) or not Path(given[key]).expanduser().exists()]
    if missing:
        return {"problem": f"data missing ({', '.join(missing)}): needs {task.about}"}
    sign = 1 if task.higher_is_better else -1
    best, problems = None, []
    for rate in settings.rates:
        scores = []
        for fold, folder in zip(task.folds, _folders(settings, name, rate), strict=True):
            try:
                scores.append(trained(settings, task, given, rate, fold, folder))
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
    try:
        tests = [tested(settings, task, folder) for folder in _folders(settings, name, best[1])]
    except SaatError as error:
        return {"problem": str(error)}
    folders = _folders(settings, name, best[1])
    if not all((folder / task.best).is_file() for folder in folders):
        problems.append(
            f"no look at dev was better than an untrained model, so the last step was tested ({folders[0]})"
        )
    return {"dev": best[0], "test": sum(tests) / len(tests), "lr": best[1], "problems": problems}


def _folders(settings: Settings, name: str, rate: str) -> list[Path]:
    """Where each fold of a task lies."""
    folder, folds = settings.out / name / f"lr-{rate}", len(TASKS[name].folds)
    return [folder / f"fold{i + 1}" for i in range(folds)] if folds > 1 else [folder]


def as_markdown(rows: list[dict[str, Any]], settings: Settings) -> str:
    """The table; scores in percent, arrows say which way is better."""
    lines = ["| task | metric | test | dev | learning rate |", "|---|---|---|---|---|"]
    for row in rows:
        arrow = "↑" if TASKS[row["task"]].higher_is_better else "↓"
        scores = [f"{_percent(row, 'test'):.2f}", f"{_percent(row, 'dev'):.2f}", row["lr"]] if "test" in row else None
        cells = scores or [row["problem"].replace("|", "/"), "", ""]
        lines.append(f"| {row['title']} ({row['task']}) | {row['metric']} {arrow} | {' | '.join(cells)} |")
    notes = [f"{row['task']}: {problem}" for row in rows if "test" in row for problem in row["problems"]]
    short = f", {settings.steps} steps each instead of SUPERB's" if settings.steps is not None else ""
    given = f" -k {settings.ckpt}" if settings.ckpt else ""
    what = f"-u {settings.upstream}{given}; learning rates {', '.join(settings.rates)}{short}"
    return "\n".join([*lines, "", what, *(f"\n{note}" for note in notes)])


def _percent(row: dict[str, Any], key: str) -> float:
    """S3PRL's WER is in percent, its PER and accuracies are shares."""
    return row[key] if row["metric"] == "wer" else 100 * row[key]
