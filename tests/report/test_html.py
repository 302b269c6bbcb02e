import html.parser
import os

import pytest

from massive_jax.report import Section, Summary, Table, style, write_report

EVIL = "<script>alert('&\"')</script>"


class _Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(source)
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "picture.png"
    with style.context():
        style.save(style.figure(1.0, 0.5), path)
    return path


def _write(folder, sections, headline="Found.", table=None, title="Report"):
    write_report(folder / "report.html", title, Summary(headline, table), sections)
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, _Page(source)


def test_everything_is_escaped(tmp_path, image):
    table = Table((EVIL, "b"), ((EVIL, 1),), caption=EVIL)
    sections = [Section(EVIL, EVIL, image, alt=EVIL, table=table)] * 3
    source, page = _write(tmp_path, sections, headline=EVIL, table=table, title=EVIL)
    assert "<script" not in source
    assert not page.all("script")
    assert page.all("img")[0]["alt"] == EVIL
    assert page.text.count(EVIL) == 2 + 1 + 3 + 3 * 2 + 4 * 3  # heads, headline, contents, sections, tables


def test_the_page_asks_for_nothing(tmp_path, image):
    source, page = _write(tmp_path, [Section("a", "b", image, alt="c")])
    (picture,) = page.all("img")
    assert picture["src"].startswith("data:image/png;base64,")
    assert (picture["width"], picture["height"]) == ("300", "150")
    assert not page.all("link")
    assert "default-src 'none'" in source
    assert "http://" not in source
    assert "https://" not in source
    assert "@import" not in source
    assert "prefers-color-scheme: dark" in source


def test_cells_are_written_for_people(tmp_path):
    rows = ((0, 1962311.0, True, "a\x00"), (12, float("inf"), False, "\ud83d"), (3, None, True, "中"))
    source, page = _write(tmp_path, [], table=Table(("layer", "perplexity", "massive", "token"), rows))
    for cell in (
        "<th scope='row' class='number'>12</th>",
        "<td class='number'>1,962,311</td>",
        "<td class='number'>inf</td>",
        "<td class='number'>–</td>",
        "<td>yes</td>",
        "<td>a\\x00</td>",
        "<td>\\ud83d</td>",
        "<td>中</td>",
    ):
        assert cell in source
    assert [head.get("class") for head in page.all("th")[:4]] == ["number", "number", None, None]


def test_contents_link_to_the_sections(tmp_path):
    _, page = _write(tmp_path, [Section(f"part {i}", "") for i in range(3)])
    targets = [link["href"] for link in page.all("a")]
    assert targets == [f"#{heading['id']}" for heading in page.all("h2")]


def test_an_image_needs_alt_text_and_to_be_a_png(tmp_path, image):
    with pytest.raises(ValueError, match="no alt text"):
        Section("a", "b", image)
    other = tmp_path / "x.png"
    other.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="not a PNG"):
        _write(tmp_path, [Section("a", "b", other, alt="c")])
    with pytest.raises(FileNotFoundError):
        _write(tmp_path, [Section("a", "b", tmp_path / "none.png", alt="c")])
    assert sorted(os.listdir(tmp_path)) == ["picture.png", "x.png"]


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        Table(("a", "b"), ((1, 2), (3,)))
