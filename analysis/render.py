"""A table, and its three ways onto paper: markdown, LaTeX (booktabs) and CSV. The same table gives the same bytes."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MISSING = "—"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table, unescaped."""

    text: str = MISSING
    bold: bool = False


@dataclass(frozen=True)
class Section:
    """One grid. The first ``n_left`` columns are names and stand left, the others are numbers and stand right.

    notes: remarks under the grid.   commands: shell commands that would fill what is missing in it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_left: int = 1
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What is shown (sections), and the plain values behind it (data: rows under columns), which go into the CSV.

    missing: what has been planned and not been run.   commands: shell commands that would run it.
    """

    title: str
    caption: str
    sections: tuple[Section, ...]
    columns: tuple[str, ...]
    data: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """GitHub-flavoured markdown."""
    blocks = [f"# {markdown_text(table.title)}", markdown_text(table.caption)]
    for section in table.sections:
        blocks.append(f"## {markdown_text(section.title)}")
        grid = [[markdown_text(name) for name in section.header]]
        grid += [
            [f"**{markdown_text(cell.text)}**" if cell.bold else markdown_text(cell.text) for cell in row]
            for row in section.rows
        ]
        rule = ["---" if column < section.n_left else "---:" for column in range(len(section.header))]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in [grid[0], rule, *grid[1:]]))
        if section.notes:
            blocks.append("\n".join(f"- {markdown_text(note)}" for note in section.notes))
        if section.commands:
            blocks += ["Missing; to fill it:", _md_code(section.commands)]
    if table.missing:
        blocks += [
            "## Not run yet",
            "\n".join(f"- {markdown_text(each)}" for each in table.missing),
            _md_code(table.commands),
        ]
    return "\n\n".join(blocks) + "\n"


def _md_code(commands: Iterable[str]) -> str:
    """Indented code: it needs no escapes and, unlike a fence, cannot be closed by what it holds."""
    return "\n".join(f"    {_line(command)}" for command in commands)


def latex(table: Table) -> str:
    """One ``tabular`` a section, for a document that loads booktabs; what is missing stands in comments."""
    blocks = [f"% {_line(table.title)}\n% {_line(table.caption)}"]
    for section in table.sections:
        align = "l" * section.n_left + "r" * (len(section.header) - section.n_left)
        rows = [
            " & ".join(rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text) for cell in row) + r" \\"
            for row in section.rows
        ]
        lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(map(_tex, section.header)) + r" \\"]
        lines += [r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
        remarks = [f"% {_line(remark)}" for remark in (section.title, *section.notes, *section.commands)]
        blocks.append("\n".join([remarks[0], *lines, *remarks[1:]]))
    if table.missing:
        blocks.append("\n".join(f"% {_line(each)}" for each in ("Not run yet:", *table.missing, *table.commands)))
    return "\n\n".join(blocks) + "\n"


def csv_text(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Comma-separated values with a header and bare newlines."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def write(stem: Path, table: Table) -> list[Path]:
    """Writes ``stem``.md, .csv and .tex."""
    return [
        write_text(stem.with_suffix(".md"), markdown(table)),
        write_text(stem.with_suffix(".csv"), csv_text(table.columns, table.data)),
        write_text(stem.with_suffix(".tex"), latex(table)),
    ]


def write_text(path: Path, text: str) -> Path:
    """Writes a file, its folder made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def markdown_text(text: str) -> str:
    """Text that markdown shows as it is, whatever it holds."""
    text = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|\[\]~$])", r"\\\1", text)
    # An underscore inside a word (zo_sgd) emphasises nothing and reads better bare.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


_TEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "—": "---", "·": r"$\cdot$", "≈": r"$\approx$", "≤": r"$\le$",
    "≥": r"$\ge$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in _line(text))
