"""What the documentation takes from elsewhere in the repository.

README files become pages, their links following them; the commands' help and the schemas of the
JSON documents become reference pages. Nothing is written beside the site.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

#: Files of the repository that are pages, by the page's name.
PAGES = {
    "index.md": "README.md",
    "captures.md": "activations/README.md",
    "prompts.md": "refusaldir/prompts/data/README.md",
    "default-pair.md": "examples/default_pair/README.md",
    "benchmarks.md": "tests/benchmarks/README.md",
    "planted.md": "tests/benchmarks/planted/README.md",
    "changelog.md": "CHANGELOG.md",
}
_PAGE_OF = {source: page for page, source in PAGES.items()}
_PAGE_OF |= {"tests/benchmarks/planted": "planted.md", "tests/benchmarks": "benchmarks.md"}

#: JSON documents, by the name of their schema.
SCHEMAS = "refusaldir/report/data"

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
_PICTURES = (".png", ".svg", ".jpg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    pictures: dict[str, Path] = {}
    for page, source in PAGES.items():
        text = _relinked((ROOT / source).read_text("utf-8"), source, pictures)
        files.append(File.generated(config, page, content=text))
    for name, path in pictures.items():
        files.append(File.generated(config, name, content=path.read_bytes()))
    files.append(File.generated(config, "cli.md", content=_commands()))
    files.append(File.generated(config, "files.md", content=_documents()))
    return files


def _relinked(text: str, source: str, pictures: dict[str, Path]) -> str:
    """Turn links between files of the repository into links between pages."""
    folder = posixpath.dirname(source)

    def target(match: re.Match[str]) -> str:
        words, link = match[1], match[2]
        if re.match(r"[a-z]+:|#", link):
            return match[0]
        path, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / path).exists():
            raise PluginError(f"{source} links to {link}, which does not exist")
        if path.endswith(_PICTURES):
            name = f"pictures/{path.replace('/', '-')}"
            pictures[name] = ROOT / path
            return f"{words}({name})"
        if path in _PAGE_OF:
            return f"{words}({_PAGE_OF[path]}{'#' + anchor if anchor else ''})"
        # Code and data are named, not shown.
        return words.strip("[]") if words.startswith("[`") else f"{words[1:-1]} (`{path}`)"

    return _LINK.sub(target, text)


def _commands() -> str:
    """The help of every command, in Markdown."""
    import typer
    from refusaldir.cli.main import app
    from typer.cli import get_docs_for_click

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="refusaldir")
    text = str(get_docs_for_click(obj=command, ctx=context, name="refusaldir"))
    for name, sub in command.commands.items():
        # The list of commands cuts their first sentences short.
        first = " ".join((sub.help or "").split("\n\n")[0].split())
        text = re.sub(rf"^\* `{name}`: .*$", f"* `{name}`: {first}", text, count=1, flags=re.M)
    # Rich's markup is for terminals; its escaped brackets are Markdown's too.
    return re.sub(r"\[/?(?:bold|dim|italic)\]", "", text)


def _documents() -> str:
    """The JSON documents, field by field, from their schemas."""
    text = (Path(__file__).parent / "files-head.md").read_text("utf-8")
    for path in sorted((ROOT / SCHEMAS).glob("*.schema.json")):
        schema = json.loads(path.read_text("utf-8"))
        name = path.name.removesuffix(".schema.json")
        version = schema["properties"]["schema_version"]["const"]
        text += f"\n## {name}.json\n\nSchema version {version}. {schema.get('description', '')}\n\n"
        text += _table(schema)
        for part, definition in schema.get("$defs", {}).items():
            if definition.get("type") == "object":
                text += f"\n### {name}: {part} {{ #{name}-{part} }}\n\n"
                text += f"{definition.get('description', '')}\n\n" + _table(definition, name)
    return text


def _table(schema: dict[str, Any], name: str = "") -> str:
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for field, definition in schema.get("properties", {}).items():
        words = definition.get("description", "").replace("|", "\\|")
        rows.append(f"| `{field}` | {_type(definition)} | {words} |")
    return "\n".join(rows) + "\n"


def _type(definition: dict[str, Any]) -> str:
    if "$ref" in definition:
        return f"`{definition['$ref'].rsplit('/', 1)[-1]}`"
    if "anyOf" in definition:
        return " or ".join(_type(one) for one in definition["anyOf"])
    if "const" in definition:
        return f"`{json.dumps(definition['const'])}`"
    if "enum" in definition:
        return " or ".join(f"`{json.dumps(one)}`" for one in definition["enum"])
    kind = definition.get("type", "any")
    kinds = kind if isinstance(kind, list) else [kind]
    if kinds == ["array"] and "items" in definition:
        return f"array of {_type(definition['items'])}"
    return " or ".join(kinds)
