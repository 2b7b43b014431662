"""How it was done: the site, the models, the settings, and the command that does it again."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.heat import HeatBand, HeatRow, heat_figure
from refusaldir.report.html.layers import site_text
from refusaldir.report.html.material import Material
from refusaldir.report.html.section import Block, Section, sentence
from refusaldir.report.text import number, visible

Row = Mapping[str, Any]

#: Settings that are arguments, not options.
_ARGUMENTS = ("base", "tuned")
#: Names of options that are not those of the settings.
_FLAGS = {"refusal_tokens": "refusal_token", "judges": "judge", "temperatures": "temperature"}


def how_section(material: Material) -> Section:
    """Answer "how was it done"."""
    document = material.document
    blocks = []
    if material.diff is not None:
        drift = material.diff["drift"]
        site = drift["site"]
        figure = _separation(material.diff)
        blocks.append(
            Block(
                title="The site",
                sentences=[
                    f"The findings are about {site_text(site)}: {visible(site['reason'])}.",
                    f"{drift['n_harmful']} harmful and {drift['n_harmless']} harmless prompts from "
                    f"{drift['n_clusters']} intents; an intent is one independent unit.",
                    *map(sentence, drift["notes"]),
                ],
                figures=[figure] if figure is not None else [],
            )
        )
    blocks.append(
        Block(
            title="Do it again",
            code=command(document["options"], "layers" if document is material.layers else "diff"),
            note="Settings that the command line chose by itself are spelt out. Put the same "
            "model files in place: their hashes are below.",
        )
    )
    blocks.append(Block(title="The two models", table=_models(document)))
    notes = [*(material.answers or {"notes": ()})["notes"]]
    if notes:
        blocks.append(
            Block(title="Notes on behaviour", sentences=[sentence(text) for text in notes])
        )
    if material.diff is not None:
        facts = [(name.replace("_", " "), text) for name, text in drift["methods"].items()]
        blocks.append(Block(title="What each figure is", facts=facts))
    blocks.append(Block(title="Versions", facts=list(_versions(document))))
    return Section(key="how", title="How was it done?", short="How was it done?", blocks=blocks)


def command(options: Row, name: str) -> str:
    """Return the command that makes a document again, from its settings."""
    words = ["refusaldir", name]
    for key in _ARGUMENTS:
        value = options.get(key)
        many = value if isinstance(value, list | tuple) else [value]
        words += [key.upper() if each is None else str(each) for each in many]
    for key, value in options.items():
        # The held-out prompts of the comparison are what is asked by default.
        held_out = key == "battery" and value == options.get("prompts")
        if key not in _ARGUMENTS and not held_out:
            words += _option(key, value)
    return shlex.join(visible(word) for word in words)


def _option(key: str, value: Any) -> list[str]:
    """Words of one setting."""
    flag = "--" + _FLAGS.get(key, key).replace("_", "-")
    if key in ("behaviour", "select"):
        return [flag, value if isinstance(value, str) else "on" if value else "off"]
    if key == "escalations":
        return [flag, "both" if len(value) > 1 else value[0]] if value else []
    if key in ("temperatures", "seeds"):
        return [flag, ",".join(f"{each:g}" for each in value)]
    if key == "thinking":
        return [] if value is None else ["--thinking" if value else "--no-thinking"]
    if value is None or value is False or value == [] or isinstance(value, Mapping):
        return []
    if value is True:
        return [flag]
    if isinstance(value, list | tuple):
        return [word for each in value for word in (flag, str(each))]
    # What begins like an option would be taken for one.
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def _models(document: Row) -> Table:
    """Both models' identity, a field a row."""
    arms = []
    for role in ("base", "tuned"):
        found = document[role]
        identity = found["model"] if "model" in found else found
        cells = {key: value for key, value in identity.items()}
        if "template" in found:
            cells["chat template"] = found["template"]["template_hash"]
            cells["tokenizer"] = found["template"]["tokenizer_hash"]
            cells["system prompt"] = found["template"]["system"]
            cells["prompts"] = f"{found['prompts_name']} ({found['prompts_hash']})"
            cells["captured"] = found["created"]
        arms.append(cells)
    names = list(dict.fromkeys([*arms[0], *arms[1]]))
    rows: list[tuple[Cell, ...]] = [
        (name.replace("_", " "), *(_text(arm.get(name)) for arm in arms))
        for name in names
        if any(arm.get(name) not in (None, "", [], ()) for arm in arms)
    ]
    return Table(columns=["field", "base", "tuned"], rows=rows)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return visible(", ".join(map(str, value)))
    return visible(str(value))


def _versions(document: Row) -> Iterator[tuple[str, str]]:
    yield "report made from", visible(f"{document['schema']} {document['schema_version']}")
    yield "created", visible(document["created"])
    yield "refusaldir", visible(document["refusaldir_version"])
    for role in ("base", "tuned"):
        versions = document[role].get("versions")
        if versions:
            listed = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield f"{role} captured with", visible(listed)


def _separation(document: Row) -> Figure | None:
    """Where base separates the classes: what the choice of the site looked at."""
    choice = document["drift"]["site_choice"]
    captured = choice["positions"]
    labels = [
        f"{number(offset, 0)} {visible(label)}"
        for offset, label in zip(captured["offsets"], captured["labels"], strict=True)
    ]
    layers = choice["layers"]
    rows = []
    for j, label in enumerate(labels):
        values = [row[j] for row in choice["auroc"]]
        primes = [row[j] for row in choice["d_prime"]]
        texts = [
            "no signal" if a is None else f"{number(a, 3)} (d′ {number(p, 2)})"
            for a, p in zip(values, primes, strict=True)
        ]
        rows.append(HeatRow(label=label, values=values, texts=texts))
    if not any(value is not None for row in rows for value in row.values):
        return None
    site = document["drift"]["site"]
    ring = None
    if site["position"] in captured["offsets"] and site["layer"] in layers:
        ring = (0, captured["offsets"].index(site["position"]), layers.index(site["layer"]))
    return heat_figure(
        [HeatBand(title="AUROC in base, held out", rows=rows, low=0.5)],
        [str(layer) for layer in layers],
        key="separation",
        title="Where base separates harmful from harmless",
        place="layer",
        caption="The stronger the colour, the better told apart in base. The ring is the site. "
        "Tuned had no say in the choice.",
        definition=visible(choice["method"]) + ".",
        ring=ring,
        link="layer",
    )
