"""Training checkpoints of ``torch.save``: the layout of the source with the changed weights and the optimizer in it.

What a training keeps is a tree of dictionaries and lists. The network's table is replaced in its place, under the
prefix that its names had; what has ``state`` and ``param_groups`` is an optimizer, whose moments follow their
parameters; a table of the same names and shapes (an average of the weights) follows as the weights do. All else stays.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.checkpoints.names import parted
from elastic_ir.checkpoints.record import Step, record_text
from elastic_ir.emit.optimizer import remap_optimizer_state
from elastic_ir.emit.parameter_order import names_of_groups, order_of_targets
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
    copies: list[str] = field(default_factory=list)  #: files that hold the network as well
    kept: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a reader is told."""
        follows = " follows the layers"
        said = (
            ("optimizer", self.optimizers, follows), ("average", self.averages, follows),
            ("copy", self.copies, follows), ("kept", self.kept, " as before"),
            ("left out", self.left_out, ", whose depth is the source's"),
        )  # fmt: skip
        return tuple((what, f"{', '.join(parts)}{end}") for what, parts, end in said if parts)


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
    writer = Rebuilder(graph, tuple(at), table, prefix, names)
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


def is_optimizer(item: Any) -> bool:
    """Whether something is what an optimizer's ``state_dict()`` gives."""
    groups = item.get("param_groups") if isinstance(item, Mapping) else None
    return (
        isinstance(groups, list)
        and isinstance(item.get("state"), Mapping)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
    )


class Rebuilder:
    """The tree of a checkpoint made anew, and what followed.

    ``table`` is the network's, at the keys ``at``; ``names`` are the parameters without the ``prefix`` that it has
    before them, in the network's order if they are ``ordered``.
    """

    def __init__(
        self, graph: Graph, at: tuple[str, ...], table: Mapping[str, Any], prefix: str, names: Sequence[str],
        ordered: bool = True,
    ) -> None:  # fmt: skip
        self.graph, self.at, self.table, self.prefix, self.names = graph, at, table, prefix, names
        self.ordered = ordered
        self.followed = Followed()
        self._forms = {name: tuple(tensor.shape) for name, tensor in table.items()}
        self._parameters = {
            name: self._forms[prefix + name] for name in names if prefix + name in self._forms
        }

    def rebuilt(self, item: Any, path: Keys) -> Any:
        """An item of the tree as it is written; what no part of the network is in is the item itself."""
        if path == self.at:
            return self._weights(item)
        if isinstance(item, Mapping):
            if is_optimizer(item):
                self.followed.optimizers.append(_shown(path))
                return self._optimizer(item, _shown(path))
            if self._is_average(item):
                self.followed.averages.append(_shown(path))
                return self._average(item, _shown(path))
            return {key: self.rebuilt(value, (*path, key)) for key, value in item.items()}
        if type(item) in (list, tuple):
            if self._is_listed_average(item):
                self.followed.averages.append(_shown(path))
                return type(item)(self._listed_average(item, _shown(path)))
            return type(item)(self.rebuilt(value, (*path, place)) for place, value in enumerate(item))
        if (name := _shown(parted(path, self.at))) not in self.followed.kept:
            self.followed.kept.append(name)
        return item

    def _weights(self, table: Mapping[str, Any]) -> dict[str, Any]:
        made = {self.prefix + name: tensor for name, tensor in self.graph.state_dict().items()}
        known = {self.prefix + name for name in self.graph.info.source_names}
        beside = {name: tensor for name, tensor in table.items() if name not in known and name not in made}
        return {**made, **beside}  # a count of averages, say, that is no part of the network

    def _is_average(self, item: Mapping[Any, Any]) -> bool:
        """Whether a table has the network's names and shapes, buffers or not: an average of its weights.

        It may have words of its own before them, and counts beside (torch's ``AveragedModel``: ``module.``,
        ``n_averaged``).
        """
        before = self._before(item)
        if before is None:
            return False
        held = {name.removeprefix(before): tensor for name, tensor in item.items() if name.startswith(before)}
        beside = [tensor for name, tensor in item.items() if not name.startswith(before)]
        return (
            {self.prefix + name for name in self.names} <= held.keys() <= self._forms.keys()
            and all(_shape(tensor) == self._forms[name] for name, tensor in held.items())
            and all(_shape(tensor) in ((), (-1,)) for tensor in beside)
        )  # fmt: skip

    def _before(self, item: Mapping[Any, Any]) -> str | None:
        """What a table has before the network's names; None where it does not have them."""
        if not self.names or not all(isinstance(name, str) for name in item):
            return None
        first = self.prefix + self.names[0]
        return next((name.removesuffix(first) for name in item if name.endswith(first)), None)

    def _average(self, item: Mapping[str, torch.Tensor], where: str) -> dict[str, Any]:
        before = self._before(item) or ""
        lead = before + self.prefix
        made = {
            lead + name: item[lead + weight.origin].clone()
            for name, weight in self.graph.weights.items()
            if weight.persistent and lead + weight.origin in item and self._is_copied(name, where)
        }
        return {**{name: tensor for name, tensor in item.items() if not name.startswith(before)}, **made}

    def _is_listed_average(self, item: Sequence[Any]) -> bool:
        """Whether a list has the parameters' shapes, as averages that go by the parameters' places have."""
        shapes = [_shape(one) for one in item]
        wanted = list(self._parameters.values())
        return len(wanted) > 1 and (shapes == wanted if self.ordered else Counter(shapes) == Counter(wanted))

    def _listed_average(self, item: Sequence[torch.Tensor], where: str) -> list[torch.Tensor]:
        shapes = [_shape(one) for one in item]
        names = names_of_groups([shapes], self._parameters, self.ordered, self.graph, where)
        held = dict(zip(names[0], item, strict=True))
        return [
            held[self.graph.weights[name].origin].clone()
            for name in order_of_targets(self.graph, names)
            if self._is_copied(name, where)
        ]

    def _is_copied(self, name: str, where: str) -> bool:
        """True for a tensor that is its source's; EmitError for any other, whose average is not known."""
        weight = self.graph.weights[name]
        if isinstance(weight.storage.data, Recipe) or weight.source:
            raise EmitError(f"{name} is computed, or of another network, and what {where} has cannot be")
        return True

    def _optimizer(self, item: Mapping[str, Any], where: str) -> dict[str, Any]:
        """An optimizer's state for the changed network; parameters are listed by numbers, or by names."""
        groups = item["param_groups"]
        listed = [one for group in groups for one in group["params"]]
        by_name = any(isinstance(one, str) for one in listed)
        order: Sequence[str] | None = None
        if by_name:
            names = [self._named(one, where) for one in listed]
        elif all("param_names" in group for group in groups):
            names = [self._named(name, where) for group in groups for name in group["param_names"]]
        else:
            shapes = [
                [moments_shape(item["state"].get(one, {})) for one in group["params"]] for group in groups
            ]
            found = names_of_groups(shapes, self._parameters, self.ordered, self.graph, where)
            names = [name for group in found for name in group]
            order = None if self.ordered else order_of_targets(self.graph, found)
        self._compare(item["state"], listed, names, where)
        waiting = iter(names)
        named = [{**group, "param_names": [next(waiting) for _ in group["params"]]} for group in groups]
        try:
            moved = remap_optimizer_state(self.graph, {**item, "param_groups": named}, names, order)
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


def _shape(item: Any) -> tuple[int, ...]:
    """The shape of a tensor; one that no tensor has for anything else."""
    return tuple(getattr(item, "shape", (-1,)))


def moments_shape(moments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the parameter that some moments are of; None where they are of several shapes, or there are none."""
    shapes = {
        _shape(moment) for kind, moment in moments.items() if kind != "step" and hasattr(moment, "shape")
    }
    return shapes.pop() if len(shapes) == 1 else None
