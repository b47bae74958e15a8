"""What a user says stays as it is though something beside it changes its count (``--keep-beside NAME``).

A name fits a numbered list, a tensor, a module that holds some, and in a checkpoint folder an entry of its
configuration, a file beside it, or an entry of such a file: by the whole dotted name or by the last parts of it
(``norms`` fits ``encoder.norms``, ``alignment_heads`` fits ``generation_config.json.alignment_heads``). Emission
finds the names in ``graph.edits``. No torch here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from elastic_ir.discovery.numbered_lists import numbered_lists
from elastic_ir.errors import PlanError
from elastic_ir.formats.files import read_json
from elastic_ir.formats.model_folder import CONFIG, CheckpointSource
from elastic_ir.ir.graph import Graph

_SMALL = (
    1 << 20
)  #: bytes of a file beside the weights whose entries may be named; a tokenizer's are no entries


def listed_names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names as they were given: none, one, several, or several in one text with commas between them."""
    if given is None:
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    names = tuple(str(part).strip() for part in parts)
    if not all(names):
        raise PlanError("keep_beside (--keep-beside) has an empty name; name a list, a tensor or an entry")
    return names


def fits(name: str, dotted: str) -> bool:
    """Whether a name is a dotted name or the last parts of it.

    >>> fits("norms", "encoder.norms"), fits("norms", "encoder.layer_norms")
    (True, False)
    """
    return dotted == name or dotted.endswith("." + name)


def is_kept(names: Iterable[str], *dotted: str) -> bool:
    """Whether one of the names fits one of several dotted names of a thing."""
    return any(fits(name, one) for name in names for one in dotted)


def tensor_is_kept(names: Iterable[str], tensor: str) -> bool:
    """Whether one of the names fits a tensor, or the module that holds it."""
    return is_kept(names, tensor, tensor.rpartition(".")[0])


def known_names(graph: Graph, given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names given, of what a graph has. PlanError for a name that fits nothing, with what could be named."""
    names = listed_names(given)
    if not names:
        return names
    lists = [found.label for found in numbered_lists(graph.weights)]
    modules = {name[:at] for name in graph.weights for at, sign in enumerate(name) if sign == "."}
    entries = list(_entries(graph.origin)) if isinstance(graph.origin, CheckpointSource) else []
    for name in names:
        if is_kept([name], *lists, *entries, *graph.weights, *modules):
            continue
        outer = [label for label in lists if not any(part.isdigit() for part in label.split("."))]
        kinds = {"lists": outer, "entries": entries, "tensors": list(graph.weights)}
        near = difflib.get_close_matches(name, [one for known in kinds.values() for one in known], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        told = "; ".join(
            f"{kind}: {', '.join(islice(known, 6))}{', ...' if len(known) > 6 else ''}"
            for kind, known in kinds.items()
            if known
        )
        raise PlanError(
            f"keep_beside (--keep-beside) names {name!r}, which {graph.name} does not have; what can be named are "
            f"{told}{hint}"
        )
    return names


def _entries(source: CheckpointSource) -> Iterator[str]:
    """Entries of a folder's configurations by their dotted names, and the files beside the weights."""
    yield from _dotted(source.config, "")
    for path in sorted(source.folder.iterdir()):
        if path.name == CONFIG or not path.is_file():
            continue
        yield path.name
        if (
            path.suffix == ".json"
            and path.stat().st_size <= _SMALL
            and path.resolve().is_relative_to(source.root)
        ):
            try:
                found = read_json(path)
            except (OSError, ValueError):
                continue  # emission copies the file as it is, and so can name it
            yield from _dotted(found, path.name)


def _dotted(table: Any, path: str, depth: int = 8) -> Iterator[str]:
    """The dotted names of all entries of a table, those of the tables inside included."""
    if not isinstance(table, dict) or not depth:
        return
    for key, value in table.items():
        name = f"{path}.{key}" if path else str(key)
        yield name
        yield from _dotted(value, name, depth - 1)
