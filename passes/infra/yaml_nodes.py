"""YAML files read node by node, so that every complaint names its line.

PyYAML's safe composer makes no objects.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.extras import import_extra
from elastic_ir.safety.limits import YAML_ENTRIES, YAML_LEVELS, open_plain, yaml_text

if TYPE_CHECKING:
    from yaml.nodes import Node


def compose(path: str | os.PathLike[str]) -> Any:
    """The root node of a file, None where it is empty; SourceError where it cannot be read or is not valid YAML."""
    yaml = import_extra("yaml", "recipes", "a YAML file")
    path = Path(path)
    try:
        with open_plain(path) as file:
            text = yaml_text(file, path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SourceError(f"{path} could not be read: {reason.lower()}") from error
    if _brackets(text) > YAML_LEVELS:
        raise SourceError(f"{path.name} is nested too deeply: {YAML_LEVELS} brackets in one another are read")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _size(root, {})
        return root
    except RecursionError as error:
        raise SourceError(f"{path.name} is nested too deeply") from error
    except ValueError as error:
        raise SourceError(f"{path.name}: {error}") from error
    except yaml.YAMLError as error:
        raise not_yaml(path, error) from error


def not_yaml(path: Path, error: Exception) -> SourceError:
    """What PyYAML reports about a file, with its line, as our error; an early end is not reported as "unexpected"."""
    mark = getattr(error, "problem_mark", None)
    where = f" line {mark.line + 1}" if mark is not None else ""
    problem = " ".join(str(getattr(error, "problem", error)).split()).replace("unexpected ", "the ")
    return SourceError(f"{path.name}{where}: not valid YAML ({problem})")


def _brackets(text: str) -> int:
    """The most brackets that are open at once; PyYAML takes seconds for thousands."""
    steps = (1 if letter in "[{" else -1 for letter in text if letter in "[{]}")
    return max(itertools.accumulate(steps), default=0)


def _size(node: Node, known: dict[int, int]) -> int:
    """How many nodes there are with all aliases written out; ValueError where they are too many, or go round."""
    if id(node) not in known:
        known[id(node)] = YAML_ENTRIES  # whoever meets it again is inside it
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    if known[id(node)] >= YAML_ENTRIES:
        raise ValueError(f"with its aliases written out it has more than {YAML_ENTRIES:,} entries")
    return known[id(node)]


class Nodes:
    """What a reader of one file asks of its nodes; each question raises PlanError with the line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, node: Node, what: str) -> NoReturn:
        raise PlanError(f"{self.name} line {node.start_mark.line + 1}: {what}")

    def mapping(self, node: Any, what: str) -> dict[str, tuple[Any, Any]]:
        """A mapping's values by key, each with the node of its key."""
        if not is_node(node, "mapping"):
            self.fail(node, f"{what} is a mapping of names to values")
        found: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if not is_node(key, "scalar"):
                self.fail(key, "a key is a name")
            if key.value in found:
                self.fail(key, f"{key.value!r} occurs twice")
            found[str(key.value)] = (key, value)
        return found


def is_node(node: Any, kind: str) -> bool:
    """Whether a node is a "scalar", a "sequence" or a "mapping"."""
    return getattr(node, "id", None) == kind
