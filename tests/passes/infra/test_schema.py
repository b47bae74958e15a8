"""The published schema of recipes: it is that of the passes, admits every recipe of the pages, and refuses slips."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from elastic_ir.passes import registered
from elastic_ir.passes.infra.schema import PATH, as_text, recipe_schema

jsonschema: Any = pytest.importorskip("jsonschema")
DOCS = Path(__file__).parents[3] / "docs"


def own() -> dict[str, Any]:
    return {name: kind for name, kind in registered().items() if kind.__module__.startswith("elastic_ir.")}


def test_the_published_one_is_up_to_date() -> None:
    assert PATH.read_text("utf-8") == as_text(own()), "run python -m elastic_ir.passes.infra.schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(PATH.read_text("utf-8")))


def test_recipes_of_the_pages_are_admitted() -> None:
    found = re.findall(
        r"^```yaml\n(version: 1\n.*?)^```", (DOCS / "passes.md").read_text("utf-8"), re.M | re.S
    )
    recipes = [yaml.safe_load(text) for text in found]
    assert recipes
    for recipe in recipes:
        jsonschema.validate(recipe, recipe_schema(own()))


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"passes": ["compact"]}, "'version' is a required property"),
        ({"version": 1, "passes": []}, "non-empty"),
        ({"version": 1, "passes": ["compakt"]}, "compakt"),
        ({"version": 1, "passes": [{"stretch": {"to-deep": 56}}]}, "to-deep"),
        ({"version": 1, "passes": [{"stretch": {"order": "backwards"}}]}, "backwards"),
        ({"version": 1, "passes": [{"stretch": {}, "compact": {}}]}, "compact"),
    ],
)
def test_slips_are_refused(recipe: dict[str, Any], why: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=why):
        jsonschema.validate(recipe, recipe_schema(own()))
