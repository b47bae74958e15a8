"""Recipes of slices as files: read node by node, so that what would need more than copying is refused with its line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_ir.errors import PlanError
from elastic_ir.ir.numbering import number_of
from elastic_ir.passes.depth.slices import Scale, Slice, Slices
from elastic_ir.passes.infra.yaml_nodes import Nodes, compose, is_node

#: Other names of dtypes.
_DTYPES = {"float": "float32", "half": "float16"}


def read_slices(path: str | os.PathLike[str]) -> Slices:
    """A recipe of slices.

    Models are folders, by a path from the working directory, as mergekit has it, or from the recipe's own folder.
    Raises SourceError where the file cannot be read or is not YAML, PlanError with the line for what is wrong in it.
    """
    return _Reader(Path(path)).read(compose(path))


class _Reader(Nodes):
    """Reads one file; models are numbered as they come."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.folder = path.parent
        self.models: dict[Path, int] = {}

    def read(self, root: Any) -> Slices:
        if root is None:
            raise PlanError(
                f"{self.name} is empty; a recipe of slices states slices and merge_method: passthrough"
            )
        keys = (
            "slices",
            "models",
            "modules",
            "merge_method",
            "base_model",
            "dtype",
            "out_dtype",
            "parameters",
        )
        found = self._keys(root, "a recipe of slices", keys)
        if "merge_method" not in found:
            self.fail(root, "the merge_method is missing; write merge_method: passthrough")
        method = found["merge_method"][1]
        if method.value != "passthrough":
            self.fail(
                method, f"the merge method {method.value!r} computes new weights; only passthrough is read"
            )
        forms = [key for key in ("slices", "models", "modules") if key in found]
        if len(forms) != 1:
            self.fail(root, "write one of slices, models and modules")
        whole = self._scales(found)
        form, (at, body) = forms[0], found[forms[0]]
        if form == "modules":
            modules = {
                name: self._module(name, key, item, whole)
                for name, (key, item) in self.mapping(body, "modules").items()
            }
            if not modules:
                self.fail(at, "modules names no module")
        else:
            modules = {"": self._row(form, body, whole)}
        if "base_model" in found:
            self._base(found["base_model"][1])
        dtypes = tuple(self._dtype(*found[key]) for key in ("dtype", "out_dtype") if key in found)
        return Slices(tuple(self.models), modules, dtypes)

    def _keys(self, node: Any, what: str, keys: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        found = self.mapping(node, what)
        for key, (at, _) in found.items():
            if key not in keys:
                self.fail(at, f"{key!r} is not read here; {what} may have {', '.join(keys)}")
        return found

    def _module(self, name: str, key: Any, node: Any, whole: tuple[Scale, ...]) -> tuple[Slice, ...]:
        found = self._keys(node, f"the module {name}", ("slices", "models", "parameters"))
        forms = [form for form in ("slices", "models") if form in found]
        if len(forms) != 1:
            self.fail(key, f"the module {name} has slices or models, one of the two")
        return self._row(forms[0], found[forms[0]][1], (*self._scales(found), *whole))

    def _row(self, form: str, node: Any, whole: tuple[Scale, ...]) -> tuple[Slice, ...]:
        if not is_node(node, "sequence") or not node.value:
            self.fail(node, f"{form} is a list")
        if form == "models":
            if len(node.value) > 1:
                self.fail(node.value[1], "passthrough takes one model at a time; write slices")
            return (self._source(node.value[0], whole, ranged=False),)
        return tuple(self._slice(item, whole) for item in node.value)

    def _slice(self, node: Any, whole: tuple[Scale, ...]) -> Slice:
        found = self._keys(node, "a slice", ("sources", "parameters", "base_model"))
        if "sources" not in found:
            self.fail(node, "a slice has sources")
        listed = found["sources"][1]
        if not is_node(listed, "sequence") or not listed.value:
            self.fail(listed, "sources is a list of one source")
        if len(listed.value) > 1:
            self.fail(
                listed.value[1], "a slice of several sources would have to be mixed; passthrough takes one"
            )
        made = self._source(listed.value[0], (*self._scales(found), *whole), ranged=True)
        if "base_model" in found:
            self._base(found["base_model"][1])
        return made

    def _source(self, node: Any, whole: tuple[Scale, ...], ranged: bool) -> Slice:
        keys = ("model", "layer_range", "parameters") if ranged else ("model", "parameters")
        found = self._keys(node, "a source", keys)
        for key in keys[:-1]:
            if key not in found:
                self.fail(node, f"a source has a {key}")
        model = self.models.setdefault(self._model(found["model"][1]), len(self.models))
        first, last = self._range(found["layer_range"][1]) if ranged else (0, None)
        where = f"{self.name} line {node.start_mark.line + 1}"
        return Slice(model, first, last, (*self._scales(found), *whole), where)

    def _model(self, node: Any) -> Path:
        if not is_node(node, "scalar") or not node.value:
            self.fail(node, "a model is the path of a folder")
        text = str(node.value)
        for path in (Path(text), self.folder / text):
            if path.is_dir():
                return Path(os.path.normpath(path))
        more = "; a LoRA has to be merged into its model first" if "+" in text else ""
        self.fail(node, f"there is no folder {text}; models are read from the disk, fetch it first{more}")

    def _base(self, node: Any) -> None:
        if self._model(node) != next(iter(self.models)):
            self.fail(
                node,
                f"the base model {node.value} is not the first slice's, whose config.json the result gets",
            )

    def _range(self, node: Any) -> tuple[int, int]:
        numbers = [item.value for item in node.value] if is_node(node, "sequence") else []
        if len(numbers) != 2 or not all(isinstance(n, str) and number_of(n) is not None for n in numbers):
            self.fail(
                node, "a layer_range is two numbers, the first layer and the one behind the last: [0, 24]"
            )
        first, last = map(int, numbers)
        if first >= last:
            self.fail(node, f"the layer_range [{first}, {last}] holds no layer: it ends before {last}")
        return first, last

    def _dtype(self, _key: Any, node: Any) -> tuple[str, str]:
        text = str(node.value).removeprefix("torch.")
        return _DTYPES.get(text, text), f"{self.name} line {node.start_mark.line + 1}"

    def _scales(self, found: Mapping[str, tuple[Any, Any]]) -> tuple[Scale, ...]:
        """What a table's parameters say, if it has any."""
        if "parameters" not in found:
            return ()
        settings = self._keys(found["parameters"][1], "the parameters of passthrough", ("scale",))
        return (self._scale(settings["scale"][1]),) if "scale" in settings else ()

    def _scale(self, node: Any) -> Scale:
        items = node.value if is_node(node, "sequence") else [node]
        if not any(is_node(item, "mapping") for item in items):
            return ((None, self._numbers(node)),)
        return tuple(self._conditional(item) for item in items)

    def _conditional(self, node: Any) -> tuple[str | None, tuple[float, ...]]:
        found = self._keys(node, "a scale", ("filter", "value"))
        if "value" not in found:
            self.fail(node, "a scale has a value")
        part = str(found["filter"][1].value) if "filter" in found else None
        if part is not None and (not part or not is_node(found["filter"][1], "scalar")):
            self.fail(node, "a filter is a part of a tensor's name")
        return part, self._numbers(found["value"][1])

    def _numbers(self, node: Any) -> tuple[float, ...]:
        items = node.value if is_node(node, "sequence") else [node]
        numbers = []
        for item in items:
            try:
                number = float(item.value)
                assert number - number == 0  # no infinity and no NaN
            except (TypeError, ValueError, AssertionError):
                self.fail(item, "a scale is a number, or a list of numbers along the slice")
            numbers.append(number)
        return tuple(numbers)
