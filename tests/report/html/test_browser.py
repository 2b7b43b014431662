"""The page in a real browser: what it does, and what it must never do."""

import copy
import csv
import io
import json
import tarfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import browser
import platformdirs
import pytest
import simulated

from refusaldir.report.document import build_document, to_json
from refusaldir.report.html import Material, Series, page

PHONE = {"width": 390, "height": 844, "phone": True}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def place(full_page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(full_page, "utf-8")
    return path


@pytest.fixture(scope="module")
def shown(chromium, place):
    return chromium.open(place.as_uri())


def complaints(opened):
    """Errors and broken promises of the policy that the browser reported."""
    return [
        *opened.events("Runtime.exceptionThrown"),
        *(e for e in opened.events("Log.entryAdded") if e["entry"]["level"] == "error"),
        *(e for e in opened.events("Runtime.consoleAPICalled") if e["type"] == "error"),
    ]


@pytest.mark.parametrize("how", [{}, {"dark": True}, PHONE], ids=["desktop", "dark", "phone"])
def test_it_opens_without_an_error_and_asks_for_nothing(chromium, place, how):
    opened = chromium.open(place.as_uri(), **how)
    assert complaints(opened) == []
    asked = [e["request"]["url"] for e in opened.events("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [place.as_uri()]
    assert opened.run("window.broken === undefined")
    # Nothing is wider than the screen.
    assert opened.run("document.documentElement.scrollWidth") <= how.get("width", 1280)


def test_complaints_and_requests_would_be_seen(chromium, tmp_path):
    """Negative control."""
    path = tmp_path / "bad.html"
    path.write_text("<script>throw new Error('x')</script><img src='http://127.0.0.1:9/a.png'>")
    opened = chromium.open(path.as_uri())
    assert complaints(opened)
    assert len(opened.events("Network.requestWillBeSent")) == 2


def test_the_policy_stops_a_script_that_is_not_the_pages(shown):
    shown.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.broken = 3';"
        "document.body.append(s); })()"
    )
    assert shown.run("window.broken === undefined")


def test_every_figure_is_drawn(shown):
    empty = shown.run(
        "[...document.querySelectorAll('figure')].filter(f => {"
        "const b = f.querySelector('svg.plot').getBoundingClientRect();"
        "return b.width < 200 || b.height < 60 || f.querySelectorAll('[data-i]').length === 0;"
        "}).map(f => f.id)"
    )
    assert empty == []
    assert shown.run("document.querySelectorAll('figure').length") > 25


def test_pointing_says_values_in_linked_figures_too(shown):
    # What scrolling closes must be closed before pointing.
    shown.run(
        "(async () => { document.querySelector('#fig-rotation')"
        ".scrollIntoView({block: 'center', behavior: 'instant'});"
        "await new Promise(r => setTimeout(r, 200)); })()"
    )
    box = shown.run(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])"
        "(document.querySelector('#fig-rotation [data-i=\"18\"]').getBoundingClientRect())"
    )
    shown.point(*box)
    text = shown.run("document.querySelector('#tip').hidden ? '' : tip.textContent")
    assert text.startswith("Layer 18") and "[" in text
    lit = shown.run("[...document.querySelectorAll('.on')].map(e => e.closest('figure').id)")
    assert {"fig-rotation", "fig-length", "fig-shift", "fig-positions"} <= set(lit)
    shown.press("Escape")
    assert shown.run("document.querySelector('#tip').hidden")


def test_arrow_keys_read_values_aloud(shown):
    shown.run("document.querySelector('#fig-shift .stage').focus()")
    shown.press("End")
    shown.press("ArrowLeft")
    said = shown.run("document.querySelector('#say').textContent")
    assert said.startswith("Layer 28") and "harmful: −" in said
    shown.run("document.querySelector('#fig-lenses .stage').focus()")
    shown.press("Home")
    first = shown.run("document.querySelector('#say').textContent")
    shown.press("ArrowDown")
    second = shown.run("document.querySelector('#say').textContent")
    assert first.split(";")[0] == second.split(";")[0] == "Layer 0"
    assert first != second


def test_a_series_can_be_hidden(shown):
    hidden = (
        "getComputedStyle(document.querySelector('#fig-shift [data-series=s1].off, #fig-shift "
        "g[data-series=s1]')).display"
    )
    assert shown.run(hidden) != "none"
    shown.run("document.querySelector('#fig-shift .key[data-series=s1]').click()")
    assert shown.run(hidden) == "none"
    shown.run("document.querySelector('#fig-shift .stage').focus()")
    shown.press("End")
    assert "harmless" not in shown.run("document.querySelector('#tip').textContent")
    shown.run("document.querySelector('#fig-shift .key[data-series=s1]').click()")
    assert shown.run(hidden) != "none"


def test_a_table_can_be_sorted_both_ways(shown):
    column = (
        "[...document.querySelectorAll('#layers table[data-key^=layers]')].pop()"
        ".querySelectorAll('tbody tr td:nth-child(3)')"
    )
    head = (
        "[...document.querySelectorAll('#layers table[data-key^=layers]')].pop()"
        ".querySelectorAll('th button')[2].click()"
    )
    read = f"[...{column}].map(c => Number(c.dataset.v))"
    before = shown.run(read)
    shown.run(head)
    assert shown.run(read) == sorted(before)
    shown.run(head)
    assert shown.run(read) == sorted(before, reverse=True)


def test_texts_are_in_the_page_only_once_asked_for(shown):
    words = (
        "(f => f.innerText + f.querySelector('table').innerHTML)(document.querySelector('.flips'))"
    )
    assert "SECRET" not in shown.run(words)
    shown.run("document.querySelector('.reveal').click()")
    assert "SECRET" not in shown.run(words)
    shown.run("document.querySelector('.read').click()")
    row = shown.run("document.querySelector('.texts-row').innerText")
    assert "Prompt" in row and "Base: " in row and "Tuned: " in row
    hostile = shown.run(
        "(() => { for (const r of document.querySelectorAll('.read')) "
        "if (r.getAttribute('aria-expanded') === 'false') r.click();"
        "return document.querySelector('.flips table').innerText; })()"
    )
    assert "</script><script>window.broken=1</script>" in hostile
    assert shown.run("window.broken === undefined && !document.querySelector('.flips img')")
    shown.run("document.querySelector('.reveal').click()")
    assert "SECRET" not in shown.run(words)


def caught(shown, figure, kind):
    """What a button would save: name and content."""
    return json.loads(
        shown.run(
            "(async () => { const make = URL.createObjectURL; let blob;"
            "URL.createObjectURL = b => { blob = b; return make.call(URL, b); };"
            "const click = HTMLAnchorElement.prototype.click; let name;"
            "HTMLAnchorElement.prototype.click = function () { name = this.download; };"
            f"document.querySelector('#fig-{figure} [data-save={kind}]').click();"
            "URL.createObjectURL = make; HTMLAnchorElement.prototype.click = click;"
            "return JSON.stringify([name, await blob.text()]); })()"
        )
    )


def test_a_figure_is_saved_with_its_colours_and_its_numbers(shown, full):
    name, text = caught(shown, "rotation", "svg")
    assert name == "rotation.svg"
    drawn = ET.fromstring(text)
    assert drawn.find("{*}title").text == "Rotation"
    curves = [e for e in drawn.findall(".//{*}path") if e.get("fill") == "none"]
    assert "rgb(0, 114, 178)" in {e.get("stroke") for e in curves}
    assert not any(e.get("class") for e in drawn.iter())
    name, text = caught(shown, "rotation", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert name == "rotation.csv"
    expected = [row["rotation"]["value"] for row in full.diff["drift"]["layers"]]
    found = [float(row["corrected"]) if row["corrected"] else None for row in rows]
    assert found == [None if v is None else pytest.approx(v, rel=1e-6) for v in expected]


def test_the_theme_can_be_chosen(shown):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = shown.run(ground)
    seen = []
    for _ in range(3):
        shown.run("document.querySelector('#theme').click()")
        seen.append(shown.run(ground))
    assert seen == [light, seen[1], light] and seen[1] != light


def test_another_model_can_be_chosen(chromium, bare, trajectory, tmp_path):
    other = Material(name="first", diff=copy.deepcopy(bare.diff))
    other.diff["verdict"]["headline"] = "THE FIRST ONE"
    path = tmp_path / "series.html"
    series = Series(trajectory=trajectory({"first": 1, "second": 2}), stops=(other, bare))
    path.write_text(page(series), "utf-8")
    opened = chromium.open(path.as_uri())
    panel = "document.querySelector('#panel .lead').textContent"
    second = opened.run(panel)
    assert second != "THE FIRST ONE"
    choose = (
        "(async () => { const c = document.querySelector('#choose'); c.value = '{}';"
        "c.dispatchEvent(new Event('change')); await new Promise(r => setTimeout(r, 300)); })()"
    )
    opened.run(choose.replace("{}", "0"))
    assert opened.run(panel) == "THE FIRST ONE"
    assert opened.run("document.querySelector('#chosen').textContent") == "first"
    opened.run("document.querySelector('#panel #fig-rotation .stage').focus()")
    opened.press("Home")
    assert opened.run("document.querySelector('#say').textContent").startswith("Layer 0")
    opened.run(choose.replace("{}", "1"))
    assert opened.run(panel) == second
    assert complaints(opened) == []


def axe():
    """The checks of axe-core, from the cache folder."""
    folder = Path(platformdirs.user_cache_dir("refusaldir"))
    found = sorted(folder.glob("axe-core-*.tgz"))
    if not found:
        pytest.skip(f"no axe-core here: npm pack axe-core --pack-destination {folder}")
    with tarfile.open(found[-1]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode("utf-8")


AXE = (
    "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html]))"
)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="desktop"),
        pytest.param({"dark": True}, id="dark", marks=pytest.mark.slow),
        pytest.param(PHONE, id="phone", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_serious_violation(chromium, drift, full, tmp_path, how):
    source = axe()
    # Few layers: the checks look at every cell of every table.
    document = json.loads(to_json(build_document(drift(4), None)))
    document["behaviour"] = full.diff["behaviour"]
    document["drift"]["views"] = full.diff["drift"]["views"][:1]
    path = tmp_path / "small.html"
    small = replace(full, diff=document, layers=simulated.document(heads=True))
    path.write_text(page(small), "utf-8")
    opened = chromium.open(path.as_uri(), **how)
    opened.run("document.querySelectorAll('#drift details').forEach(d => { d.open = true; })")
    opened.run("document.querySelector('.reveal').click()")
    opened.run("document.querySelector('.read').click()")
    opened.run(source + ";0")
    found = opened.run(AXE)
    assert [one for one in found if one[0] in ("serious", "critical")] == []


def test_axe_would_find_one(chromium, tmp_path):
    """Negative control."""
    source = axe()
    path = tmp_path / "bad.html"
    path.write_text("<html><body><p style='color:#ccc;background:#fff'>pale</p><button></button>")
    opened = chromium.open(path.as_uri())
    opened.run(source + ";0")
    assert {"critical", "serious"} & {one[0] for one in opened.run(AXE)}
