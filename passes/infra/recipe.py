"""Recipes: a pipeline as a YAML file, checked line by line.

    version: 1
    passes:
      - stretch: {to-depth: 56, order: interpolate}
      - compact

The file is read by PyYAML's safe composer, which makes no objects; every complaint names the line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import PlanError
from elastic_ir.passes.infra import Pass
from elastic_ir.passes.infra.pipeline import Pipeline
from elastic_ir.passes.infra.spec import PassSpec, make_pass
from elastic_ir.passes.infra.yaml_nodes import Nodes, compose, is_node

if TYPE_CHECKING:
    from yaml.nodes import Node

VERSION = 1
_KEYS = {"version", "description", "passes"}


def read_recipe(path: str | os.PathLike[str]) -> Pipeline:
    """The pipeline of a recipe.

    Raises SourceError where the file cannot be read or is not YAML, PlanError (with the line) for what is wrong in it.
    """
    root = compose(path)
    return _Recipe(Path(path).name).pipeline(root)


class _Recipe(Nodes):
    def pipeline(self, root: Any) -> Pipeline:
        if root is None:
            raise PlanError(f"{self.name} is empty; a recipe states version: {VERSION} and passes")
        found = self.mapping(root, "a recipe")
        for key, (at, _) in found.items():
            if key not in _KEYS:
                self.fail(at, f"{key!r} is not a key of a recipe; its keys are {', '.join(sorted(_KEYS))}")
        if "version" not in found:
            self.fail(root, f"the version is missing; write version: {VERSION}")
        version = found["version"][1]
        if version.value != str(VERSION):
            self.fail(version, f"version {version.value} is not read by this ElasticIR; it reads {VERSION}")
        if "passes" not in found:
            self.fail(root, "the passes are missing")
        listed = found["passes"][1]
        if not is_node(listed, "sequence") or not listed.value:
            self.fail(listed, "passes is a list, each item a name or a name with options")
        return Pipeline(self._pass(item) for item in listed.value)

    def _pass(self, item: Any) -> Pass:
        from elastic_ir.passes import find_pass

        options: dict[str, str | bool] = {}
        places: dict[str, Node] = {}
        if is_node(item, "scalar"):
            name = str(item.value)
        else:
            found = self.mapping(item, "a pass")
            if len(found) != 1:
                self.fail(item, "a pass is one name, with its options below it; indent the options further")
            ((name, (_, body)),) = found.items()
            if not (is_node(body, "scalar") and body.value == ""):
                for key, (at, value) in self.mapping(body, f"the options of {name}").items():
                    options[key] = self._text(value)
                    places[key] = at
        try:
            return make_pass(PassSpec(name, options), find_pass(name))
        except PlanError as error:
            at = next((node for key, node in places.items() if f"{key!r}" in str(error)), item)
            at = next((node for key, node in places.items() if f"the option {key} " in str(error)), at)
            self.fail(at, str(error))

    def _text(self, value: Any) -> str | bool:
        """An option's value as it would be written in a pipeline's text."""
        if is_node(value, "sequence"):
            parts = [self._text(part) for part in value.value]
            nested = any(is_node(part, "sequence") for part in value.value)
            return ("|" if nested else ",").join(str(part) for part in parts)
        if is_node(value, "mapping"):
            found = self.mapping(value, "a value")
            return ",".join(f"{key}={self._text(part)}" for key, (_, part) in found.items())
        if value.tag.endswith(":bool") and value.value.lower() in ("true", "yes", "on"):
            return True
        return "none" if value.tag.endswith(":null") else str(value.value)
