"""Training checkpoints of ``torch.save``: the layout of the source with the changed weights and the optimizer in it.

What a training keeps is a tree of dictionaries and lists. The network's table is replaced in its place, under the
prefix that its names had; what has ``state`` and ``param_groups`` is an optimizer, whose moments follow their
parameters; a table of the same names and shapes (an average of the weights) follows as the weights do. All else stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.checkpoints.record import Step, record_text
from elastic_ir.emit.optimizer import remap_optimizer_state
from elastic_ir.errors import EmitError, OutputError
from elastic_ir.formats.files import atomic_output
from elastic_ir.formats.torch_zip import STEPS, append_zip_records
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.serialise import steps_data
from elastic_ir.tensors.recipes import Recipe

if TYPE_CHECKING:
    import torch

Keys: TypeAlias = tuple[str | int, ...]  #: the keys and places that lead to something in the tree


@dataclass
class Followed:
    """What has become of a checkpoint's parts, by the keys that lead to them."""

    optimizers: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a reader is told."""
        said = (("optimizer", self.optimizers), ("average", self.averages), ("kept", self.kept))
        ends = {"optimizer": " follows the layers", "average": " follows the layers", "kept": " as before"}
        return tuple((what, f"{', '.join(parts)}{ends[what]}") for what, parts in said if parts)


def save_training_file(
    graph: Graph,
    out: str | os.PathLike[str],
    found: Any,
    at: Sequence[str],
    names: Sequence[str],
    key: str | None = None,
) -> list[Path]:
    """Write a checkpoint whose network is the graph, in the layout of the one that its source was read from.

    ``found`` is what that file holds, tensors in it, ``at`` the keys that lead to the network's table, ``names`` the
    source's parameters as the graph's source calls them, in the order in which an optimizer has them. The record of the
    change goes along, with the ``key`` by which the network was chosen, where torch does not look. Raises EmitError
    where an optimizer does not fit the network, and OutputError where the layout has no place for what the graph holds.
    """
    import torch

    if any(weight.mask is not None for weight in graph.weights.values()):
        raise OutputError(
            "a training checkpoint has no place for masks; leave out --with-optimizer, or bake the masks in first"
        )
    table = found
    for key in at:
        table = table[key]
    prefix = _prefix(graph, table)
    writer = _Writer(graph, tuple(at), table, prefix, names)
    fresh = writer.rebuilt(found, ())
    if not writer.followed.optimizers:
        raise EmitError("the source holds no optimizer (a dictionary with state and param_groups)")
    with atomic_output(out) as path:
        torch.save(fresh, path)
        steps = [Step.of(step) for step in steps_data(graph)]
        if steps:
            further = len(steps[-1].sources) - 1
            steps[-1] = replace(steps[-1], keys=(key, *[""] * further) if key else ())
            append_zip_records(path, {STEPS: record_text(steps).encode()})
    graph.emitted = replace(graph.emitted, beside=writer.followed.facts())
    return [Path(out)]


def parameter_names(source: Graph) -> list[str]:
    """The names of a source's parameters in the order of ``named_parameters()``, tied ones once."""
    found: dict[int, str] = {}
    for name, weight in source.weights.items():
        if weight.is_parameter:
            found.setdefault(id(weight.storage), name)
    return list(found.values())


def _prefix(graph: Graph, table: Mapping[str, Any]) -> str:
    """What stands before every name of the source in the file's table."""
    origins = [weight.origin for weight in graph.weights.values() if weight.persistent]
    for name in table:
        if name.endswith(origins[0]):
            prefix = name[: len(name) - len(origins[0])]
            if all(prefix + origin in table for origin in origins):
                return prefix
    missing = next((origin for origin in origins if origin not in table), origins[0])
    raise EmitError(f"the checkpoint has no {missing!r} under one prefix, so its names cannot be kept")


class _Writer:
    """The tree of a checkpoint made anew, and what followed."""

    def __init__(
        self, graph: Graph, at: tuple[str, ...], table: Mapping[str, Any], prefix: str, names: Sequence[str]
    ) -> None:
        self.graph, self.at, self.table, self.prefix, self.names = graph, at, table, prefix, names
        self.followed = Followed()
        self._forms = {name: tuple(tensor.shape) for name, tensor in table.items()}

    def rebuilt(self, item: Any, path: Keys) -> Any:
        """An item of the tree as it is written; what no part of the network is in is the item itself."""
        if path == self.at:
            return self._weights(item)
        if isinstance(item, Mapping):
            if "state" in item and "param_groups" in item:
                self.followed.optimizers.append(_shown(path))
                return self._optimizer(item, _shown(path))
            if self._is_average(item):
                self.followed.averages.append(_shown(path))
                return self._average(item, _shown(path))
            return {key: self.rebuilt(value, (*path, key)) for key, value in item.items()}
        if isinstance(item, list):
            return [self.rebuilt(value, (*path, place)) for place, value in enumerate(item)]
        if path[0] not in self.followed.kept:
            self.followed.kept.append(str(path[0]))
        return item

    def _weights(self, table: Mapping[str, Any]) -> dict[str, Any]:
        made = {self.prefix + name: tensor for name, tensor in self.graph.state_dict().items()}
        known = {self.prefix + name for name in self.graph.info.source_names}
        beside = {name: tensor for name, tensor in table.items() if name not in known and name not in made}
        return {**made, **beside}  # a count of averages, say, that is no part of the network

    def _is_average(self, item: Mapping[Any, Any]) -> bool:
        """Whether a table has the network's names and shapes: an average of its weights."""
        return len(item) == len(self._forms) and all(
            tuple(getattr(tensor, "shape", (-1,))) == self._forms.get(name) for name, tensor in item.items()
        )

    def _average(self, item: Mapping[str, torch.Tensor], where: str) -> dict[str, Any]:
        made = {}
        for name, weight in self.graph.weights.items():
            if not weight.persistent:
                continue
            if isinstance(weight.storage.data, Recipe) or weight.source:
                raise EmitError(f"{name} is computed, or of another network, and what {where} has cannot be")
            made[self.prefix + name] = item[self.prefix + weight.origin].clone()
        return made

    def _optimizer(self, item: Mapping[str, Any], where: str) -> dict[str, Any]:
        """An optimizer's state for the changed network; parameters are listed by numbers, or by names."""
        groups = item["param_groups"]
        listed = [one for group in groups for one in group["params"]]
        by_name = any(isinstance(one, str) for one in listed)
        names = [self._named(one, where) for one in listed] if by_name else self._in_order(groups, where)
        self._compare(item["state"], listed, names, where)
        waiting = iter(names)
        named = [{**group, "param_names": [next(waiting) for _ in group["params"]]} for group in groups]
        try:
            moved = remap_optimizer_state(self.graph, {**item, "param_groups": named}, names)
        except EmitError as error:
            raise EmitError(f"{where}: {error}") from error
        called: dict[int, str] = {}
        for group, before in zip(moved["param_groups"], groups, strict=True):
            targets = [self.prefix + name for name in group.pop("param_names")]
            called |= zip(group["params"], targets, strict=True)
            if by_name:
                group["params"] = targets
            elif "param_names" in before:
                group["param_names"] = targets
        if by_name:
            moved["state"] = {called[number]: moments for number, moments in moved["state"].items()}
        return {**item, **moved}

    def _named(self, name: str, where: str) -> str:
        if name.startswith(self.prefix) and name[len(self.prefix) :] in self.names:
            return name[len(self.prefix) :]
        if name in self.names:
            return name
        raise EmitError(f"{where}: {name!r} is no parameter of the network")

    def _in_order(self, groups: Sequence[Mapping[str, Any]], where: str) -> list[str]:
        """The names of parameters that are listed by numbers: as the groups state them, or all in their order."""
        if all("param_names" in group for group in groups):
            return [self._named(name, where) for group in groups for name in group["param_names"]]
        count = sum(len(group["params"]) for group in groups)
        if len(groups) > 1 or count != len(self.names):
            what = f"{len(groups)} groups" if len(groups) > 1 else f"{count} of {len(self.names)} parameters"
            raise EmitError(
                f"{where} has {what} by numbers alone, so which parameter is which is not known; save an optimizer "
                "of named parameters, or move its state from Python by remap_optimizer_state, which is told the names"
            )
        return list(self.names)

    def _compare(
        self, state: Mapping[Any, Any], listed: Sequence[Any], names: Sequence[str], where: str
    ) -> None:
        """EmitError where no moment has the shape of the parameter that it would be of, whole or factored."""
        for one, name in zip(listed, names, strict=True):
            shape = self._forms[self.prefix + name]
            forms = {kind: tuple(getattr(moment, "shape", ())) for kind, moment in state.get(one, {}).items()}
            forms = {kind: form for kind, form in forms.items() if form}
            fit = (shape, shape[:-1], shape[:-2] + shape[-1:])  # Adafactor's rows and columns
            if forms and not any(form in fit for form in forms.values()):
                kind, form = next(iter(forms.items()))
                raise EmitError(
                    f"{where}: {kind} of parameter {one} is {list(form)} and {name} {list(shape)}, so the optimizer "
                    "lists its parameters in another order; move its state from Python by remap_optimizer_state"
                )


def _shown(path: Keys) -> str:
    return ".".join(map(str, path))
