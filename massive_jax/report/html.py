"""One self-contained HTML page: no script, no request to anywhere, opens from disk."""

import base64
import dataclasses
import html
import os
import struct
import urllib.parse
from collections.abc import Sequence

from massive_jax import files
from massive_jax.report import words

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


def write_report(path: str | os.PathLike[str], title: str, summary: Summary, sections: Sequence[Section]) -> None:
    """Writes a report to read in a browser or to print: headline, summary table, then the sections.

    Every text is escaped, images are inlined, and the page forbids itself any request. Whatever is in a token
    text shows as text; control characters show escaped. Written whole or not at all.

    Args:
      path: where the page goes, `report.html` say.
      title: of the page.
      summary: the main finding.
      sections: in the order to read them.

    Raises:
      FileNotFoundError: a section's image is not there.
      ValueError: an image is not a PNG file.
    """
    body = [f"<header>\n<h1>{_text(title)}</h1>\n<p class='headline'>{_text(summary.headline)}</p>\n</header>"]
    if summary.table:
        body.append(f"<section aria-label='Summary'>\n{_table(summary.table)}\n</section>")
    if len(sections) > 2:
        links = "".join(f"<li><a href='#s{i}'>{_text(s.heading)}</a></li>" for i, s in enumerate(sections, 1))
        body.append(f"<nav aria-label='Contents'><ol>{links}</ol></nav>")
    body += [_section(section, f"s{i}") for i, section in enumerate(sections, 1)]
    page = _PAGE.format(title=_text(title), css=_CSS, body="\n".join(body))
    with files.atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


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
            f"<div class='figure' role='region' tabindex='0' aria-label='{name}'>"
            f"<img src='{source}' {size} alt='{_text(section.alt)}'></div>"
        )
    if section.table:
        parts.append(_table(section.table))
    if section.links:
        links = (f"<a href='{urllib.parse.quote(path)}'>{_text(name)}</a>" for name, path in section.links)
        parts.append(f"<p>{' · '.join(links)}</p>")
    return f"<section aria-labelledby='{anchor}'>\n" + "\n".join(parts) + "\n</section>"


def _table(table: Table) -> str:
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
    name = _text(table.caption or "Table: " + ", ".join(table.columns))
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


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --rule: #d5d9de;
  --tint: #f6f8fa; --accent: #b34700; --link: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a3acb5; --paper: #14171a; --rule: #3a4148; --tint: #1d2226;
    --accent: #ff9a57; --link: #78bdf0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--soft); margin: 0 0 .5rem; }
.headline { font-size: clamp(1.3rem, 1rem + 1.6vw, 1.75rem); line-height: 1.3; font-weight: 650;
  margin: 0 0 1.5rem; padding-left: .9rem; border-left: .25rem solid var(--accent); text-wrap: pretty; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .4rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
nav ol { margin: 1.5rem 0 0; padding-left: 1.4rem; }
a { color: var(--link); }
.figure { overflow-x: auto; background: #ffffff; border: 1px solid var(--rule); border-radius: .4rem;
  padding: .5rem; margin: 0 0 1rem; }
.figure img { display: block; width: 100%; height: auto; }
.table { overflow-x: auto; margin: 0 0 1rem; }
.table:focus-visible, .figure:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem .5rem; border-bottom: 1px solid var(--rule);
  vertical-align: top; max-width: 24rem; overflow-wrap: break-word; }
thead th { border-bottom: 2px solid var(--rule); white-space: nowrap; }
tbody th { font-weight: 500; }
tbody tr:nth-child(even) { background: var(--tint); }
.number { text-align: right; white-space: nowrap; }
@media (max-width: 36rem) {
  main { padding: 1.25rem .9rem 2.5rem; }
  .figure { margin-left: -.4rem; margin-right: -.4rem; padding: .25rem; }
  .figure img { min-width: 42rem; }
}
@media print {
  :root { --ink: #000000; --soft: #444444; --paper: #ffffff; --rule: #bbbbbb; --tint: #ffffff;
    --accent: #b34700; --link: #000000; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { break-after: avoid; }
  .figure, tr { break-inside: avoid; }
  .figure { border: 0; padding: 0; overflow: visible; }
  .figure img { min-width: 0; max-height: 20cm; object-fit: contain; object-position: left; }
  .table { overflow: visible; }
}
"""
