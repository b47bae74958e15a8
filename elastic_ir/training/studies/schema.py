"""The JSON schema of study files, made from the types of what they hold: editors complete and check by it.

``python -m elastic_ir.training.studies.schema`` writes ``study.schema.json``, which is in the package; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elastic_ir.training.entries import schema_of
from elastic_ir.training.studies.method_options import OPTIONS
from elastic_ir.training.studies.study import METHODS, DataEntry, Study

#: The file that is published.
PATH = Path(__file__).with_name("study.schema.json")


def study_schema() -> dict[str, Any]:
    """A schema (JSON Schema 2020-12) of study files.

    It admits every study that is read; what it admits may still be refused where entries contradict each other.
    """
    whole = schema_of(Study)
    entries = whole["properties"]
    entries["data"] = {"anyOf": [{"type": "string"}, schema_of(DataEntry)]}
    entries["networks"]["additionalProperties"] = {
        "type": "object",
        "required": ["factory"],
        "properties": {
            "factory": {"type": "string", "pattern": ":", "description": "PACKAGE.MODULE:FUNCTION."}
        },
    }
    entries["pruning"]["required"].remove("levels")  # they follow from the sparsities
    for name in ("name", "title"):
        entries[name]["type"] = ["string", "number"]
    entries["compare"]["anyOf"] = [_with_options(part) for part in entries["compare"]["anyOf"]]
    whole["required"].remove("pruning")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of ElasticIR: networks, data, methods, sparsities and seeds to compare",
        **whole,
        "properties": {
            name: entry if name in whole["required"] else {"anyOf": [entry, {"type": "null"}]}
            for name, entry in entries.items()
        },
    }


def _with_options(part: dict[str, Any]) -> dict[str, Any]:
    """The schema of an entry of ``compare``, or of a list of them, with the options of each method."""
    if part["type"] == "array":
        return {**part, "items": _with_options(part["items"])}
    allowed = {
        method: {
            "additionalProperties": False,
            "properties": {name: schema_of(kind) for name, kind in OPTIONS.get(method, {}).items()},
        }
        for method in METHODS
    }
    chosen = [
        {
            "if": {"properties": {"method": {"const": method}}, "required": ["method"]},
            "then": {"properties": {"options": options}},
        }
        for method, options in allowed.items()
    ]
    return {**part, "allOf": chosen}


def as_text() -> str:
    """The schema as a file has it."""
    return json.dumps(study_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(as_text(), "utf-8")
