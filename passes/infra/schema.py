"""The JSON schema of recipes, made from the passes' own options: editors complete and check by it.

``python -m elastic_ir.passes.infra.schema`` writes ``recipe.schema.json``, which is in the package; a test compares.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_ir.passes.infra import Pass, option_fields
from elastic_ir.passes.infra.option_table import kinds_of, option_table

#: The file that is published.
PATH = Path(__file__).with_name("recipe.schema.json")
_PLAIN: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    types.NoneType: {"enum": [None, "none"]},
}


def recipe_schema(passes: Mapping[str, type[Pass]]) -> dict[str, Any]:
    """A schema (JSON Schema 2020-12) of recipes of these passes.

    It admits every recipe that is read; values that it admits may still be refused where the pass is made.
    """
    options = {
        name: {
            "type": ["object", "null"],
            "description": kind.help(),
            "additionalProperties": False,
            "properties": _options(kind),
        }
        for name, kind in sorted(passes.items())
    }
    listed = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of ElasticIR: a pipeline of passes",
        "type": "object",
        "required": ["version", "passes"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": 1},
            "description": {"description": "For readers."},
            "passes": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [{"enum": sorted(passes)}, {**listed, "properties": options}]},
            },
        },
    }


def _options(kind: type[Pass]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = {field.name.replace("_", "-"): field.name for field in option_fields(kind)}
    found: dict[str, Any] = {}
    for name, words, default, comment in option_table(kind):
        field = fields[name]
        text = f"{comment or words}{f' (default: {default})' if default else ''}"
        admitted = [_value(each) for each in kinds_of(hints[field])]
        found[name] = {"description": text, "anyOf": admitted}
    return found


def _value(hint: Any) -> dict[str, Any]:
    """What YAML may hold for one type of an option."""
    origin = typing.get_origin(hint) or hint
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is typing.Literal:
        return {"enum": list(typing.get_args(hint))}
    if origin in (Sequence, list, tuple):
        return {"type": ["array", "string", "integer"]}
    if origin is Mapping:
        return {"type": ["object", "string"]}
    # a text that looks like a number is one for YAML
    return {"type": ["string", "number", "array", "object"]}


def as_text(passes: Mapping[str, type[Pass]]) -> str:
    """The schema as a file has it."""
    return json.dumps(recipe_schema(passes), indent=1) + "\n"


def main() -> None:
    """Write the file that is published, of the passes that come with ElasticIR."""
    from elastic_ir.passes import registered

    own = {name: kind for name, kind in registered().items() if kind.__module__.startswith("elastic_ir.")}
    PATH.write_text(as_text(own), "utf-8")


if __name__ == "__main__":
    main()
