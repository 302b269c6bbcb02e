"""One self-contained HTML page: no request to anywhere, opens from disk. With an `Explorer` it has a part to explore.

Templates, styles and scripts are in page/; the charts' library is uPlot (MIT), in page/uplot/.
"""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import os
import string
import struct
import urllib.parse
from collections.abc import Sequence

from massive_jax import files
from massive_jax.report import words
from massive_jax.report.records import as_json
from massive_jax.report.results import Explorer

Cell = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Describes a table. Numbers are aligned right; True and False are "yes" and "no"; None "–".

    Attributes:
      columns: the heads, one a column.
      rows: as many cells each as there are columns; the first names the row.
      caption: a sentence above the table, or "".
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self):
        wrong = [i for i, row in enumerate(self.rows) if len(row) != len(self.columns)]
        if not self.columns or wrong:
            raise ValueError(f"rows {wrong} do not have the {len(self.columns)} cells that `columns` asks for")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Holds what a reader in a hurry sees: one sentence with the main finding, and the numbers behind it."""

    headline: str
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Describes a part of the report.

    Attributes:
      heading: its title.
      text: a sentence of what the picture shows.
      image: a PNG file, or None.
      alt: what the picture says, for those who do not see it; asked for with every image.
      table: or None.
      links: words and where they lead: a path from the page's directory.
    """

    heading: str
    text: str
    image: str | os.PathLike[str] | None = None
    alt: str = ""
    table: Table | None = None
    links: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        if self.image is not None and not self.alt.strip():
            raise ValueError(f"section {self.heading!r} has an image and no alt text: say what the picture shows")


def write_report(
    path: str | os.PathLike[str],
    title: str,
    summary: Summary,
    sections: Sequence[Section],
    explorer: Explorer | None = None,
    preview: str | None = None,
) -> None:
    """Writes a report to read in a browser or to print: headline, summary table, what is to explore, then the sections.

    Every text is escaped, images are inlined, and the page forbids itself any request. Whatever is in a token
    text shows as text; control characters show escaped. Written whole or not at all. Without JavaScript, and in print,
    all is there but what is to explore.

    Args:
      path: where the page goes, `report.html` say.
      title: of the page.
      summary: the main finding.
      sections: in the order to read them.
      explorer: what can be explored; it is in the page as JSON, of which everything there is drawn. None for a page
        without a script.
      preview: name of a picture beside the page, for those who link to it; None for none.

    Raises:
      FileNotFoundError: a section's image is not there.
      ValueError: an image is not a PNG file.
    """
    if files.is_discarding():  # the process that keeps the page has the images, and may not have written them yet
        return
    body = [f"<header>\n<h1>{_text(title)}</h1>\n<p class='headline'>{_text(summary.headline)}</p>\n</header>"]
    if summary.table:
        body.append(f"<section aria-label='Summary'>\n{_table(summary.table, 'Findings')}\n</section>")
    if len(sections) > 2:
        links = "".join(f"<li><a href='#s{i}'>{_text(s.heading)}</a></li>" for i, s in enumerate(sections, 1))
        body.append(f"<nav aria-label='Contents'><ol>{links}</ol></nav>")
    css, scripts, block = _asset("page.css"), [], ""
    if explorer is not None:
        body.append(_asset("explorer.html"))
        css += _asset("uplot/uPlot.min.css")
        scripts = [_asset("uplot/uPlot.iife.min.js"), _asset("paint.js") + _asset("explorer.js")]
        block = f"<script type='application/json' id='explored'>{_json(explorer)}</script>\n"
    body += [_section(section, f"s{i}") for i, section in enumerate(sections, 1)]
    page = string.Template(_asset("page.html")).substitute(
        title=_text(title),
        description=_text(summary.headline),
        preview="" if preview is None else f"<meta property='og:image' content='{_text(preview)}'>\n",
        policy=_policy(css, scripts),
        css=css,
        body="\n".join(body),
        scripts=block + "".join(f"<script>{script}</script>\n" for script in scripts),
    )
    with files.atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    """A file of page/."""
    return importlib.resources.files("massive_jax.report").joinpath("page", name).read_text(encoding="utf-8")


def _policy(css: str, scripts: Sequence[str]) -> str:
    """The page's content-security policy: images in the page, and these very styles and scripts; nothing else."""

    def hashes(texts: Sequence[str]) -> str:
        digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests) or "'none'"

    rules = f"style-src {hashes([css])}; script-src {hashes(scripts)}"
    return f"default-src 'none'; img-src data:; {rules}; base-uri 'none'; form-action 'none'"


def _json(explorer: Explorer) -> str:
    """As JSON that no markup can be in: what would begin or end some is escaped, which JSON reads as the same."""
    text = files.json_text(as_json(explorer))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _section(section: Section, anchor: str) -> str:
    parts = [f"<h2 id='{anchor}'>{_text(section.heading)}</h2>", f"<p>{_text(section.text)}</p>"]
    if section.image is not None:
        data = files.as_path(section.image).read_bytes()
        if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
            raise ValueError(f"{str(section.image)!r} is not a PNG file: only those can be put into the report")
        width, height = struct.unpack(">II", data[16:24])
        source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        name = _text(f"Figure: {section.heading}")
        size = f"width='{width}' height='{height}'"
        parts.append(
            "<p class='cue'>The figure is wider than the screen: it scrolls sideways ↔</p>"
            f"<div class='figure' role='region' tabindex='0' aria-label='{name}'>"
            f"<img src='{source}' {size} alt='{_text(section.alt)}'></div>"
        )
    if section.table:
        parts.append(_table(section.table, section.heading))
    if section.links:
        links = (f"<a href='{urllib.parse.quote(path)}'>{_text(name)}</a>" for name, path in section.links)
        parts.append(f"<p>{' · '.join(links)}</p>")
    return f"<section aria-labelledby='{anchor}'>\n" + "\n".join(parts) + "\n</section>"


def _table(table: Table, heading: str) -> str:
    numeric = [
        any(_is_number(row[i]) for row in table.rows)
        and all(_is_number(row[i]) or row[i] is None for row in table.rows)
        for i in range(len(table.columns))
    ]
    kind = [" class='number'" if n else "" for n in numeric]
    heads = "".join(f"<th scope='col'{k}>{_text(name)}</th>" for k, name in zip(kind, table.columns, strict=True))
    rows = []
    for row in table.rows:
        cells = [f"<th scope='row'{kind[0]}>{_cell(row[0])}</th>"]
        cells += [f"<td{k}>{_cell(cell)}</td>" for k, cell in zip(kind[1:], row[1:], strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    name = _text(f"Table: {table.caption or heading}")
    # What is too wide for a phone scrolls by itself, also from the keyboard, and the page does not.
    return (
        f"<div class='table' role='region' tabindex='0' aria-label='{name}'><table>{caption}\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return _text(cell) if isinstance(cell, str) else _text(words.number(cell))


def _text(text: str) -> str:
    """`text` for HTML, in an element or a quoted attribute."""
    return html.escape(words.plain(text, font=False), quote=True)
