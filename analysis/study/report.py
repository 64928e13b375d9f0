"""The report, `report.md` and a `report.html` that needs no other file: tables, figures, the commands behind them."""

import base64
import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from saat.analysis.study.tables import Table
from saat.files import write_text
from saat.markdown import markdown_table

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
.words { text-align: left; }
th { cursor: pointer; background: #f4f4f4; } th:hover { background: #e6e6e6; }
th[data-order]::after { content: " \\25B2"; font-size: 0.7em; } th[data-order="-1"]::after { content: " \\25BC"; }
img { max-width: 100%; } p.note { color: #555; font-size: 13px; max-width: 60rem; }
pre { background: #f4f4f4; padding: 0.5rem; overflow-x: auto; font-size: 12px; white-space: pre-wrap; }
"""

# A click on a column's head sorts by it: by the number a cell begins with, where it has one; dashes last.
SCRIPT = """
for (const th of document.querySelectorAll("th")) th.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], column = th.cellIndex;
  const order = th.dataset.order === "1" ? -1 : 1;
  for (const other of th.parentNode.children) delete other.dataset.order;
  th.dataset.order = order;
  const key = row => {
    const text = row.cells[column].textContent, number = parseFloat(text);
    return text === "-" ? null : isNaN(number) ? text : number;
  };
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return order * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
  }).forEach(row => body.appendChild(row));
});
"""


@dataclass
class Section:
    """A part of a report: a heading, then what there is of text, tables, figures and commands."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[Path, str]] = field(default_factory=list)  # with what they show
    commands: list[str] = field(default_factory=list)


def write_report(title: str, sections: list[Section], folder: Path) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html`. Errors: SaatError when they cannot be written."""
    markdown, page = folder / "report.md", folder / "report.html"
    write_text(markdown, as_markdown(title, sections, folder))
    write_text(page, as_html(title, sections))
    return markdown, page


def as_markdown(title: str, sections: list[Section], folder: Path) -> str:
    """Figures are linked, from `folder`."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        for table in section.tables:
            parts += [f"**{table.title}**", markdown_table([table.columns, *table.rows])]
            parts += [table.note] if table.note else []
        for path, caption in section.figures:
            parts += [f"![{caption}]({path.relative_to(folder).as_posix()})", caption]
        if section.commands:
            parts.append("\n".join(f"    {command}" for command in section.commands))
    return "\n\n".join(parts) + "\n"


def as_html(title: str, sections: list[Section]) -> str:
    """One page, figures and all."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(part)}</p>" for part in section.text.split("\n\n") if part]
        for table in section.tables:
            body.append(_table_html(table))
        for path, caption in section.figures:
            data = base64.b64encode(path.read_bytes()).decode()
            body.append(f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></p>')
            body.append(f'<p class="note">{html.escape(caption)}</p>')
        if section.commands:
            listing = html.escape("\n".join(section.commands))
            body.append(f"<details><summary>{len(section.commands)} commands</summary><pre>{listing}</pre></details>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    page = f"<head>{head}</head><body>{''.join(body)}<script>{SCRIPT}</script></body>"
    return f'<!doctype html><html lang="en">{page}</html>\n'


def _table_html(table: Table) -> str:
    words = [not any(re.match(r"-?\d", cell) for cell in column) for column in zip(*table.rows, strict=True)]

    def line(tag: str, row: list[str]) -> str:
        kinds = (f'{tag} class="words"' if left else tag for left in words or [True] * len(row))
        cells = (f"<{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    head, rows = line("th", table.columns), "".join(line("td", row) for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    caption = f"<p><b>{html.escape(table.title)}</b></p>"
    return f'{caption}<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>{note}'


def write_results(rows: list[dict], folder: Path) -> Path:
    """`results.json`. Errors: SaatError when it cannot be written."""
    path = folder / "results.json"
    write_text(path, json.dumps(rows, indent=1) + "\n")
    return path
