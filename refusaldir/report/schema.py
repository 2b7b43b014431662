"""Checking a document against its JSON Schema, without a runtime dependency for it.

Only the keywords that our own schema uses are known; a test holds this checker against the
``jsonschema`` package on mutated documents, and the schema against the list of keywords.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

#: Keywords that say something about a value.
CHECKED = frozenset(
    {"$ref", "additionalProperties", "anyOf", "const", "enum", "items", "maximum", "minimum"}
    | {"properties", "required", "type"}
)
#: Keywords that only describe, or hold definitions.
DESCRIBING = frozenset({"$schema", "$id", "$defs", "$comment", "title", "description"})

#: A reference to a definition of another document's schema.
_FOREIGN = re.compile(r'"urn:refusaldir:(\w+):\d+#/\$defs/')

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
}


@cache
def document_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a document; treat it as read-only.

    A definition that another document's schema holds (``urn:refusaldir:behaviour:1#/$defs/…``)
    is taken in, so that the schema stands by itself.

    Args:
        kind: ``"diff"``, ``"behaviour"``, …: the file's name without ending.
    """
    text = files("refusaldir.report").joinpath(f"data/{kind}.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(_FOREIGN.sub(r'"#/$defs/', text))
    for other in sorted({match[1] for match in _FOREIGN.finditer(text)}):
        schema["$defs"] = {**document_schema(other)["$defs"], **schema["$defs"]}
    return schema


def first_violation(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Say where a JSON value first departs from a schema.

    Args:
        value: A value as `json.loads` returns it.
        schema: A schema that uses no keyword outside `CHECKED` and `DESCRIBING`; references
            point into its own ``$defs``.

    Returns:
        A sentence such as ``"drift.layers[3].layer is missing"``, or None when all is well.
    """
    return _check(value, schema, schema.get("$defs", {}), "")


def _check(value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> str | None:
    here = path.removeprefix(".") or "the document"
    if "$ref" in schema:
        wrong = _check(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs, path)
        if wrong:
            return wrong
    if "anyOf" in schema:
        tried = [_check(value, option, defs, path) for option in schema["anyOf"]]
        if all(tried):
            # The longest complaint comes from the option that fitted furthest down.
            return max((t for t in tried if t), key=len)
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{here} is {_brief(value)} instead of {_brief(schema['const'])}"
    if "enum" in schema and not any(_equal(value, option) for option in schema["enum"]):
        return f"{here} is {_brief(value)}, none of {', '.join(map(_brief, schema['enum']))}"
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is_type(value, name) for name in names):
            return f"{here} is {_brief(value)} instead of {' or '.join(names)}"
    if _is_type(value, "number"):
        if value < schema.get("minimum", -math.inf) or value > schema.get("maximum", math.inf):
            return f"{here} is {value}, out of range"
    elif isinstance(value, dict):
        return _check_object(value, schema, defs, path)
    elif isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            wrong = _check(item, schema["items"], defs, f"{path}[{i}]")
            if wrong:
                return wrong
    return None


def _check_object(
    value: dict[str, Any], schema: Mapping[str, Any], defs: Mapping[str, Any], path: str
) -> str | None:
    for key in schema.get("required", ()):
        if key not in value:
            return f"{path}.{key} is missing".removeprefix(".")
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for key, item in value.items():
        rule = known.get(key, others)
        if rule is False:
            return f"{path}.{key} is unknown".removeprefix(".")
        if rule is not True:
            wrong = _check(item, rule, defs, f"{path}.{key}")
            if wrong:
                return wrong
    return None


def _is_type(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (name == "number" or isinstance(value, int) or value.is_integer())
    return isinstance(value, _TYPES[name])


def _equal(a: Any, b: Any) -> bool:
    """JSON equality of scalars: 1 equals 1.0, but not true."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
