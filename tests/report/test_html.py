import base64
import contextlib
import hashlib
import html.parser
import io
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from massive_jax.files import discarding, read_json
from massive_jax.report import Section, Summary, Table, as_record, label, results, style, write_report

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


def test_a_page_that_another_process_keeps_waits_for_no_image(tmp_path):
    with discarding():
        write_report(tmp_path / "a.html", "Report", Summary("Found."), [Section("a", "b", tmp_path / "c.png", alt="d")])
    assert not list(tmp_path.iterdir())


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        Table(("a", "b"), ((1, 2), (3,)))


# The same with what is to explore.

TOKENS = ("</script><img src=x onerror=alert(1)>", "<!--", " a", "\u2028", "\x00", "“&amp;”", "中")


PATCHES = ("CLS", "reg1", *(f"({row},{column})" for row in range(3) for column in range(4)))
SQUARES = (0, 1, 2, 2, 3, 3, 2, 2, 3, 3, 4, 4, 5, 5)  # the cells of these: patches in squares of four


def _explorer(tokens=TOKENS, layers=3, heads=2, value=2.0, image=None):
    T, model = len(tokens), "m</script><b>"
    values = [tuple(float((-1) ** t * (1 + i * T + t)) for t in range(T)) for i in range(layers)]
    bias = {"share": 0.5, "update_norm": 2.0, "rest_norm": 1.0, "spread": 0.1, "rest_spread": 0.9}
    likely = tuple(results.Likely(name=label(token, font=False), probability=0.1) for token in TOKENS[:5])
    cells = tuple(t // -(-T // 30) for t in range(T)) if image is None else SQUARES
    C, causal = cells[-1] + 1, image is None
    outcome = {"value": value, "top": likely}
    about = {"text": "</script>", "bos": True, "ending": "<b>"} if image is None else {"image": "</script>.png"}

    def one(name):
        return results.ExploredInput(
            model=model,
            input=name,
            tokens=tuple(tokens),
            labels=tuple(label(token, font=False) for token in tokens),
            massive=(0,),
            layers=tuple(
                results.ExploredLayer(layer=i + 1, median=0.001, values=values[i], dims=(7,) * T, **bias)
                for i in range(layers)
            ),
            attention=results.ExploredAttention(
                cells=cells,
                causal=causal,
                maps=(((*((1000 // (q + 1),) * (q + 1 if causal else C) for q in range(C)),),) * heads,) * layers,
            ),
            map=results.ExploredMap(layer=2, cells=cells, dims=(0, 9), rows=((1.0, 500.0),) * C),
            image=image,
        )

    edits = [
        results.WhatIfEdit(layer=n, place=p, operation=o, **outcome | {"value": 10.0 * n + p + 2 * o})
        for n in range(1, layers + 1)
        for p in range(2)
        for o in range(2)
    ]
    return results.Explorer(
        headline="Found </script>.",
        inputs=(one("no BOS"), one("BOS in front")),
        what_if=(
            results.WhatIf(
                model=model,
                metric="perplexity" if image is None else "cosine_similarity",
                **about,
                tokens=T,
                places=("one", "other"),
                operations=("set to zero", "halved"),
                unedited=results.WhatIfOutcome(**outcome),
                edits=tuple(edits),
            ),
        ),
    )


def _image_explorer():
    written = io.BytesIO()
    Image.fromarray(np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)).save(written, "JPEG")
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return _explorer(PATCHES, image=results.ExploredImage(picture=f"data:image/jpeg;base64,{data}", grid=(3, 4)))


def _explored_page(folder, explorer, sections=()):
    summary = Summary("Found </script>.", Table(("a", "b"), (("c", 1),)))
    write_report(folder / "report.html", "Report", summary, sections, explorer, preview="report.png")
    return (folder / "report.html").read_text(encoding="utf-8")


def _scripts(source):
    return re.findall(r"<script(?: type='application/json' id='explored')?>(.*?)</script>", source, re.DOTALL)


def test_the_page_holds_the_results_and_no_markup_of_theirs(tmp_path):
    explorer = _explorer(value=float("inf"))
    source = _explored_page(tmp_path, explorer)
    page = _Page(source)
    assert len(page.all("script")) == 3
    assert not page.all("img")
    data, *_ = _scripts(source)
    assert not set(data) & set("<>&\u2028\u2029")
    (tmp_path / "data.json").write_text(data, encoding="utf-8")
    assert as_record(results.Explorer, read_json(tmp_path / "data.json"), "page") == explorer


def test_the_page_holds_the_picture(tmp_path):
    explorer = _image_explorer()
    data, *_ = _scripts(_explored_page(tmp_path, explorer))
    (tmp_path / "data.json").write_text(data, encoding="utf-8")
    held = read_json(tmp_path / "data.json")
    assert held["inputs"][0]["image"]["grid"] == [3, 4]
    assert not {"text", "bos", "ending"} & held["what_if"][0].keys()
    assert as_record(results.Explorer, held, "page") == explorer


def test_the_policy_names_these_scripts_and_styles(tmp_path):
    source = _explored_page(tmp_path, _explorer())
    (policy,) = [meta["content"] for meta in _Page(source).all("meta") if "http-equiv" in meta]
    for text in (*_scripts(source)[1:], *re.findall(r"<style>(.*?)</style>", source, re.DOTALL)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    tags = _Page(source).tags
    assert not [tag for tag, attributes in tags for name in attributes if name.startswith("on") or name == "style"]
    assert not [tag for tag, attributes in tags if {"src", "href", "srcset"} & {*attributes}]


def test_512_tokens_fit(tmp_path):
    tokens = [f" token{i}" for i in range(512)]
    _explored_page(tmp_path, _explorer(tokens, layers=30, heads=9))
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


# In a browser, where there is one: CONTRIBUTING.md says what this takes.


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api  # of the extra "test": that it is absent is a failure

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on PATH: the page is not tested in a browser")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def _opened(browser, report, width, scheme):
    """The page; when the test has done with it, it has told nothing, asked for nothing, and can be read."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#explorer:not([hidden])")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000

    yield page

    again = browser.new_page(viewport={"width": width, "height": 800})
    again.goto(page.url)
    again.wait_for_selector("#explorer:not([hidden])")
    for place in ("#outcome", "#token", "#heat-token"):
        assert again.locator(place).inner_text() == page.locator(place).inner_text()
    again.close()
    assert page.locator("img[src=x]").count() == 0
    assert told == []
    assert [url for url in asked if not url.startswith(("data:", report.as_uri()))] == []
    assert page.evaluate(_TOO_SMALL) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(_CUT) == []
    if axe := os.environ.get("AXE"):
        page.evaluate(pathlib.Path(axe).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    page.close()


def _values(buttons):
    """What is drawn of each token."""
    return buttons.evaluate_all("all => all.map(b => Number(b.dataset.value))")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(tmp_path, image, browser, width, scheme):
    explorer = _explorer()
    section = Section("a", "b", image, alt="c", table=Table(("a", "b"), (("x" * 60, "y" * 60),)))
    _explored_page(tmp_path, explorer, [section])
    one = explorer.inputs[0]
    with _opened(browser, tmp_path / "report.html", width, scheme) as page:
        # What is drawn is what the JSON says.
        strip = page.locator(".strip").first.locator("button")
        assert strip.all_inner_texts() == list(one.labels)
        page.locator("#layer").fill("3")
        assert _values(strip) == list(one.layers[2].values)
        assert "3 of 3" in page.locator("label[for=layer]").inner_text()

        # The keyboard: tokens, layers, heads.
        page.locator("#layer").focus()
        page.keyboard.press("ArrowLeft")
        assert "2 of 3" in page.locator("label[for=layer]").inner_text()
        strip.nth(len(TOKENS) - 1).focus()
        page.keyboard.press("ArrowLeft")
        assert "position 5" in page.locator("#token").inner_text()
        assert f"largest −{-one.layers[1].values[5]:.0f} at dim 7" in page.locator("#token").inner_text()
        page.locator("#head").focus()
        page.keyboard.press("ArrowRight")
        assert "head 0" in page.locator("#heat-token").inner_text()
        assert "16.6 %" in page.locator("#keys").inner_text()
        assert not page.locator("#gaze-box").is_visible()

        # The panel.
        page.locator("#operation").select_option(label="halved")
        page.locator("#place").select_option(label="other")
        page.locator("#edited").fill("2")
        assert "“</script>”, with BOS in front, which" in page.locator("#what-if-words").inner_text()
        assert "→ 33" in page.locator("#outcome").inner_text()
        assert "Next token, unedited" in page.locator("#next").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_an_image_in_a_browser(tmp_path, browser, width, scheme):
    explorer = _image_explorer()
    _explored_page(tmp_path, explorer)
    one = explorer.inputs[0]
    with _opened(browser, tmp_path / "report.html", width, scheme) as page:
        before, patches = (page.locator(box).first.locator("button") for box in (".strip", "#strips .patches"))
        assert before.all_inner_texts() == ["CLS", "reg1"]
        page.locator("#layer").fill("3")
        assert (*_values(before), *_values(patches)) == one.layers[2].values
        picture, grid = (page.locator("#strips .patches").first.locator(name) for name in ("img", "button"))
        assert picture.evaluate("one => one.naturalWidth") == 4
        box, first, last = (found.bounding_box() for found in (picture, grid.first, grid.last))
        assert (first["x"], first["y"]) == pytest.approx((box["x"], box["y"]), abs=1)
        assert last["x"] + last["width"] == pytest.approx(box["x"] + box["width"], abs=1)
        assert last["width"] == pytest.approx(last["height"], abs=1)

        # The keyboard goes up and down by rows, and from the first row to what is before the patches.
        patches.nth(1).focus()
        page.keyboard.press("ArrowDown")
        assert "position 7 “(1,1)”" in page.locator("#token").inner_text()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert "position 0 “CLS”" in page.locator("#token").inner_text()
        patches.nth(11).hover()
        assert "position 13 “(2,3)”" in page.locator("#token").inner_text()

        # Attention, of a query on the picture: a click chooses another.
        spot = page.locator("#gaze canvas").bounding_box()
        page.locator("#gaze canvas").click(position={"x": spot["width"] - 3, "y": spot["height"] - 3})
        assert "query (2,2)–(2,3) attends to" in page.locator("#heat-token").inner_text()
        said = page.locator("#gaze-words").inner_text()
        assert "from 4.2 % of it (no colour) to 8.3 % on (2,0); 33.2 % on CLS, reg1." in said
        assert "up to 4 patches" in page.locator("#cells").inner_text()

        page.locator("#edited").fill("2")
        assert "“</script>.png”. One image" in page.locator("#what-if-words").inner_text()
        assert "unedited one: 30." in page.locator("#outcome").inner_text()
        assert "Class, unedited" in page.locator("#next").inner_text()


@pytest.mark.slow
def test_without_a_script(tmp_path, image, browser):
    _explored_page(tmp_path, _explorer(), [Section("a", "b", image, alt="c")])
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert not page.locator("#explorer").is_visible()
    assert page.locator(".figure img").is_visible()
    assert page.locator(".headline").inner_text() == "Found </script>."
    context.close()


_TOO_SMALL = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    if (parseFloat(getComputedStyle(parent).fontSize) < 12) found.push(walker.currentNode.textContent);
  }
  return found;
}"""

# What reaches over the edge, but in a box that scrolls and says so: a shadow, or words above it.
_CUT = """() => {
  const cue = (e) => getComputedStyle(e).overflowX === "auto" && (getComputedStyle(e).backgroundImage !== "none"
    || (e.previousElementSibling?.className === "cue" && e.previousElementSibling.getClientRects().length));
  const wide = document.documentElement.clientWidth + 1;
  return [...document.querySelectorAll("main *")].filter((e) => {
    const box = e.getBoundingClientRect();
    if (!box.width || (box.right <= wide && box.left >= -1)) return false;
    for (let p = e.parentElement; p; p = p.parentElement) if (cue(p)) return false;
    return true;
  }).map((e) => e.outerHTML.slice(0, 80));
}"""
