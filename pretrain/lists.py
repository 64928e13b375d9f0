"""Lists of audio files: S3PRL's length tables (`len_for_bucket/*.csv`), and plain text with a path a line."""

import csv
from pathlib import Path

from saat.errors import SaatError

LISTS = {".csv", ".txt"}


def read_list(file: Path, root: str | Path | None = None) -> tuple[dict[Path, str], dict[Path, int]]:
    """The files a list names: each with its name in the list, and with its line.

    A `.csv` has a column `file_path`; what else it says (S3PRL's `length`) is not used, for lengths come from the
    files themselves. A `.txt` has a path a line. Relative paths start at `root`; without one, at the list's own
    folder or the nearest one above it below which the first listed file lies.

    Errors: SaatError, with file and line, for a list that cannot be read, is empty, or whose files are nowhere.
    """
    entries = _csv(file) if file.suffix.lower() == ".csv" else _txt(file)
    if not entries:
        raise SaatError(f"{file} lists no audio file")
    base = _base(file, entries, root)
    files = {base / entry: entry for entry in entries}
    return files, {base / entry: line for entry, line in entries.items()}


def _base(file: Path, entries: dict[str, int], root: str | Path | None) -> Path:
    """The folder that relative entries start at."""
    entry, line = next(((e, n) for e, n in entries.items() if not Path(e).is_absolute()), (None, 0))
    if entry is None:
        return file.parent
    if root is not None:
        base = Path(root).expanduser().resolve()
        if not (base / entry).is_file():
            raise SaatError(f"{file}, line {line}: no file {base / entry}: does datarc.root fit this list?")
        return base
    for folder in file.parents:
        if (folder / entry).is_file():
            return folder
    raise SaatError(
        f"{file}, line {line}: '{entry}' lies neither below {file.parent} nor below a folder above it: say where the "
        "listed paths start with -o config.pretrain_expert.datarc.root=FOLDER"
    )


def _csv(file: Path) -> dict[str, int]:
    """The entries, each with its line."""
    entries: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if "file_path" not in (rows.fieldnames or ()):
                raise SaatError(f"{file}, line 1: no column 'file_path', but: {', '.join(rows.fieldnames or ())}")
            for row in rows:
                if not row["file_path"]:
                    raise SaatError(f"{file}, line {rows.line_num}: nothing in the column 'file_path'")
                entries.setdefault(row["file_path"], rows.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SaatError(f"{file} cannot be read as a table: {error}") from error
    return entries


def _txt(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SaatError(f"{file} cannot be read as text: {error}") from error
    entries: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            entries.setdefault(line.strip(), number)
    return entries
