"""The documentation builds, every link in it leads somewhere, and it asks no network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the documentation needs the extra: docs")
pytest.importorskip("material", reason="the documentation needs the extra: docs")

CONFIG = Path(__file__).parents[2] / "examples" / "docs" / "mkdocs.yml"


def build(config, site):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(CONFIG, folder)
    assert done.returncode == 0, done.stderr
    return folder


class _Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and "stylesheet" in (found.get("rel") or ""):
            self.loads.append(found["href"])


def test_links_and_anchors_lead_somewhere(site):
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids | {"__skip"}, f"{path.name}: {link}"
                checked += 1
    assert checked > 100


def test_no_request_leaves_a_page(site):
    for path in site.rglob("*.html"):
        for address in _Page(path).loads:
            assert not re.match(r"(https?:)?//", address), f"{path.name}: {address}"


def test_every_command_and_document_is_there(site):
    from refusaldir.cli.main import app

    commands = (site / "cli.html").read_text("utf-8")
    for command in app.registered_commands:
        assert f"refusaldir {command.name}" in commands
    documents = (site / "files.html").read_text("utf-8")
    for path in (CONFIG.parents[2] / "refusaldir" / "report" / "data").glob("*.schema.json"):
        assert f"{path.name.removesuffix('.schema.json')}.json" in documents


def test_a_broken_link_is_found(tmp_path):
    folder = tmp_path / "examples" / "docs"
    (folder / "pages").mkdir(parents=True)
    (folder / "pages" / "index.md").write_text("[gone](gone.md)")
    (folder / "mkdocs.yml").write_text("site_name: x\ndocs_dir: pages\nstrict: true\n")
    done = build(folder / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "gone.md" in done.stderr
