"""The layers document: which layers a fine-tune disturbed, as one JSON file.

It is to `refusaldir layers` what ``diff.json`` is to a comparison: the interface to other tools,
from which table and figure are drawn. ``data/layers.schema.json`` defines every field with its
unit.
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir import __version__
from refusaldir.records import ModelIdentity
from refusaldir.report.document import Document, load_kind, plain
from refusaldir.report.schema import document_schema
from refusaldir.report.text import visible

if TYPE_CHECKING:
    from refusaldir.layers.result import LayersResult

Row = Mapping[str, Any]

SCHEMA = "refusaldir.layers"
#: Raised when a reader of the previous version could misread a document.
SCHEMA_VERSION = 1

#: What `by_layer` gives of each layer.
_FIELDS = (
    "combined", "path", "attn", "mlp", "restored", "injected",
    "residual_attn", "residual_mlp", "weights_attn", "weights_mlp",
)  # fmt: skip


def build_layers(
    result: "LayersResult",
    *,
    base: ModelIdentity,
    tuned: ModelIdentity,
    prompts: Row,
    refusal_tokens: tuple[str, ...] | None = None,
    site: Row | None = None,
    options: Row | None = None,
    created: str | None = None,
) -> Document:
    """Put a result into the form that is written, shown and drawn.

    Args:
        result: What the lenses came to.
        base: The base model.
        tuned: The fine-tuned model.
        prompts: ``name`` of the set, ``which`` of its prompts, and their ``rendered_hash``.
        refusal_tokens: First tokens of refusals, as text; None where the outcome needs none.
        site: Hook, layer, position and reason of the direction; None without one.
        options: The settings it was made with, JSON-ready.
        created: UTC time in ISO 8601; now by default.

    Returns:
        A dictionary of plain JSON values, equal to what `load_layers` reads back.
    """
    parts = result.to_dict()
    return dict(
        plain(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "refusaldir_version": __version__,
                "options": dict(options or {}),
                "verdict": parts.pop("verdict"),
                "base": base.to_dict(),
                "tuned": tuned.to_dict(),
                "prompts": dict(prompts),
                "refusal_tokens": refusal_tokens,
                "site": None if site is None else dict(site),
                **parts,
            }
        )
    )


def load_layers(path: str | Path) -> Document:
    """Read a layers document and check it against its schema.

    Raises:
        StoreError: As `refusaldir.report.document.load_document` says.
    """
    return load_kind(path, "layers", SCHEMA, SCHEMA_VERSION, document_schema("layers"))


def pair_names(document: Row) -> str:
    """Return ``base → tuned`` by their short names."""
    return visible(" → ".join(document[arm]["name"] for arm in ("base", "tuned")))


def by_layer(document: Row) -> dict[int | None, Row]:
    """Every figure of the document that is about a layer, by layer, for table and figure.

    Returns:
        Per block, and None for what lies outside the blocks where that changed: its row of the
        ranking as ``combined``; its figures by ``path``, by that in ``attn`` and ``mlp``,
        ``restored`` and ``injected``; its terms ``residual_attn`` and ``residual_mlp``; its
        totals ``weights_attn`` and ``weights_mlp``. What was not measured, or did not change, is
        None.
    """
    measured = document["measured"]
    layers: list[int | None] = list(range(measured["n_layers"]))
    layers += [None] if measured["outside"] else []
    rows: dict[int | None, dict[str, Any]] = {layer: dict.fromkeys(_FIELDS) for layer in layers}
    for entry in (document["ranking"] or {"layers": []})["layers"]:
        rows[entry["layer"]]["combined"] = entry
    lenses = {"path": document["path"] or {}, "transplant": document["transplant"] or {}}
    for lens, key, name in (
        ("path", "layers", "path"),
        ("transplant", "restored", "restored"),
        ("transplant", "injected", "injected"),
    ):
        for cell in lenses[lens].get(key, ()):
            rows[cell["layer"]][name] = cell
    for cell in lenses["path"].get("components", ()):
        if cell["component"] in ("attn", "mlp"):
            rows[cell["layer"]][cell["component"]] = cell
    for term in (document["residual"] or {"terms": []})["terms"]:
        if term["layer"] is not None:
            rows[term["layer"]][f"residual_{term['component']}"] = term
    for total in (document["weights"] or {"totals": []})["totals"]:
        rows[total["layer"]][f"weights_{total['component']}"] = total
    return dict(rows)
