"""Which tensors beside a stack have entries for its layers, and how, as the network of a configuration shows it.

With one layer more in the configuration, such a tensor is longer by the entry of one layer. What the entries mean
shows in the code of the class that uses it, which is its library's own: whether they are softmaxed, whether an axis
of all layers' channels is taken apart by layers first. What shows neither in a plain way is said to be unclear.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elastic_ir.checkpoints.config.restated import restated
from elastic_ir.checkpoints.libraries.library import Library
from elastic_ir.checkpoints.oracle import experiments, network
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.tensors.gathered import ByLayer

#: By which axis, and by how much, tensors are longer.
Growth = Mapping[str, tuple[int, int]]
_SPLITTING = ("reshape", "view")  #: methods that take an axis apart


def indexed(
    library: Library,
    config: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]],
    stacks: Sequence[Stack],
    heads: Mapping[str, str],
) -> dict[str, ByLayer]:
    """The tensors outside of stacks with entries for the layers of one; ``heads`` are the modules' by the labels.

    So are stacks of one layer fewer that stand between the layers of another, by what stands before their numbers.
    """
    found: dict[str, ByLayer] = {}
    module = library.network(config, library.file)
    odd = {name for name, _, _ in library.loading(module, tensors)["shapes"]}  # before anything has changed
    for stack in stacks:
        if stack.label not in heads or not stack.before:
            continue
        longer, growth = _grown(library, config, tensors, stacks, stack, heads[stack.label])
        lengths = network.lengths(longer) if longer is not None else {}
        for other in stacks:
            fewer = other.before == stack.before - 1
            if fewer and lengths.get(heads.get(other.label, "")) == stack.before:
                how = ByLayer(stack.series.head, 0, more=-1)
                found[other.series.head] = _with_another(found.get(other.series.head), how)
        for called, (axis, size) in growth.items():
            name = None if called in odd else _stored(library, called, module, tensors)
            if name is None:
                continue
            more, rest = divmod(tensors[name][axis] - size * stack.before, size)
            how = ByLayer(stack.series.head, axis, size, more)
            if rest or abs(more) > 1:
                how = replace(how, unclear="it has other entries besides, which may stand anywhere")
            else:
                how = _explained(library, called, how, (module, stack.before), (longer, stack.before + 1))
            found[name] = _with_another(found.get(name), how)
    return found


def _with_another(before: ByLayer | None, now: ByLayer) -> ByLayer:
    """How a tensor is indexed that becomes longer with one stack, and perhaps with others before."""
    if before is None:
        return now
    if replace(before, head=now.head, also=()) != now:
        return replace(before, unclear="it becomes longer with several stacks, in several ways")
    return replace(before, also=(*before.also, now.head))


def _grown(
    library: Library,
    config: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]],
    stacks: Sequence[Stack],
    stack: Stack,
    head: str,
) -> tuple[Any, Growth]:
    """A network of one layer more, and the tensors that grow with it.

    It is that of the configuration that would be written for it; where that has no such network, of what experiments
    find, and the tensors are those that grow in all of these.
    """
    before = network.lengths(library.network(config, library.file))
    longest: Any = None
    always: Growth = {}
    raised = (one for _, one in experiments.raised(config, stack))
    for configs in (_proposed(config, tensors, stacks, stack), raised):
        if longest is not None:
            break
        for longer in configs:
            try:
                module = library.network(longer, library.file)
            except SourceError:
                continue
            after = network.lengths(module)
            if after.get(head) != before[head] + 1:
                continue
            changed = tuple(one for one, length in after.items() if length != before.get(one))
            growth = _growth(library, module, tensors, changed)
            if longest is None:
                longest, always = module, growth
            always = {name: grown for name, grown in always.items() if growth.get(name) == grown}
    return longest, always


def _proposed(
    config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]], stacks: Sequence[Stack], stack: Stack
) -> list[Mapping[str, Any]]:
    """The configuration of one layer more, as far as the names of entries show it."""
    longer = replace(stack, order=(*range(stack.before), stack.before - 1), taken=())
    others = [replace(one, order=tuple(range(one.before)), taken=()) for one in stacks if one is not stack]
    try:
        return [restated(dict(config), [longer, *others], list(tensors))]
    except PlanError:
        return []


def _growth(
    library: Library, module: Any, tensors: Mapping[str, Sequence[int]], changed: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """Tensors outside of the lists that changed that a network has longer along one axis, by their names there.

    A list that grew along may have a wider layer in some place, which is no tensor that became longer.
    """
    found = {}
    for name, held, wanted in library.loading(module, tensors)["shapes"]:
        steps = [
            (at, long - short)
            for at, (short, long) in enumerate(zip(held, wanted, strict=False))
            if long != short
        ]
        if not name.startswith(changed) and len(held) == len(wanted) and len(steps) == 1 and steps[0][1] > 0:
            found[name] = steps[0]
    return found


def _stored(library: Library, name: str, module: Any, tensors: Mapping[str, Sequence[int]]) -> str | None:
    """What the checkpoint calls a tensor of the network: what it is missed without."""
    if name in tensors:
        return name
    shape = tuple(module.state_dict()[name].shape)
    for stored in [one for one, held in tensors.items() if tuple(held) == shape]:
        rest = {one: held for one, held in tensors.items() if one != stored}
        if name in library.loading(module, rest)["missing"]:
            return stored
    return None


# -- what the entries mean ---------------------------------------------------------------------------------------------


def _explained(library: Library, name: str, how: ByLayer, *networks: tuple[Any, int]) -> ByLayer:
    """How a tensor is indexed, as the code of its class shows it in networks of so many layers."""
    from torch import nn

    path, _, role = name.rpartition(".")
    try:
        holder = networks[0][0].get_submodule(path)
    except AttributeError:
        return replace(how, unclear="its module has another name in the network")
    layer = isinstance(holder, nn.Embedding | nn.Linear | nn.Conv1d | nn.Conv2d)
    path, attribute = path.rpartition(".")[::2] if layer else (path, role)
    owners = [(module.get_submodule(path), count) for module, count in networks]
    uses = list(_uses(library, type(owners[0][0]), attribute))
    if layer:
        along = 1 if isinstance(holder, nn.Embedding) else 0
        reads = how.axis == 1 and isinstance(holder, nn.Linear)
        if how.more or not (reads or how.axis == along) or not uses:
            return replace(how, unclear=f"{type(holder).__name__} mixes its entries with others")
        if not all(
            use.joined_by_layer if reads else use.split_by_layer(owner, count, how.size)
            for use in uses
            for owner, count in owners
        ):
            return replace(how, unclear="it does not show whether the layers or their channels come first")
        return how
    if how.size > 1:
        return replace(how, unclear="it does not show whether the layers or what they have come first")
    softmaxed = {use.softmaxed for use in uses}
    if not uses:
        return replace(how, unclear="it does not show what is done with them")
    if None in softmaxed or len(softmaxed) > 1:
        return replace(how, unclear="it does not show whether they are softmaxed as they are")
    if True in softmaxed and (len(owners[0][0].get_parameter(attribute).shape) > 1 or how.more < 0):
        return replace(how, unclear="it does not show along which axis they are softmaxed")
    if how.more > 0 and not (True in softmaxed and all("hidden_states" in use.names for use in uses)):
        return replace(how, unclear="it does not show which of them is not a layer's")
    return replace(how, softmaxed=True in softmaxed)


@dataclass(frozen=True)
class _Use:
    """A place where a method reads an attribute of its own module."""

    method: ast.FunctionDef
    place: ast.Attribute
    parents: Mapping[ast.AST, ast.AST]

    @property
    def names(self) -> set[str]:
        """The names and attributes in the method."""
        return {_last(node) for node in ast.walk(self.method)} - {""}

    @property
    def softmaxed(self) -> bool | None:
        """Whether the attribute is softmaxed as it is; None where it may be after something else was done to it."""
        node: ast.AST = self.place
        while True:
            above = self.parents[node]
            if isinstance(above, ast.Attribute) and isinstance(self.parents[above], ast.Call):  # node.to(...)
                if above.attr == "softmax":
                    return True
                if above.attr not in ("to", "float", "type_as"):
                    break
                node = self.parents[above]
            elif isinstance(above, ast.Call) and node in above.args[:1] and _last(above.func) == "softmax":
                return True
            else:
                break
        return None if any("softmax" in name for name in self.names) else False

    def split_by_layer(self, owner: Any, count: int, size: int) -> bool:
        """Whether the method takes the last axis apart into so many layers, and then what each of them has."""
        found = [
            tuple(_value(argument, owner) for argument in node.args[-2:])
            for node in ast.walk(self.method)
            if isinstance(node, ast.Call) and _last(node.func) in _SPLITTING and len(node.args) > 2
        ]
        return (count, size) in found and (size, count) not in set(found) - {(count, size)}

    @property
    def joined_by_layer(self) -> bool:
        """Whether the method makes one axis of the layers and then what each of them has, as it names the two."""
        products = [
            (_last(argument.left), _last(argument.right))
            for node in ast.walk(self.method)
            if isinstance(node, ast.Call) and _last(node.func) in _SPLITTING
            for argument in node.args
            if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Mult)
        ]
        return bool(products) and all("layer" in one and "layer" not in other for one, other in products)


def _uses(library: Library, kind: type, attribute: str) -> Iterator[_Use]:
    """Where the methods of a class read an attribute of its own, its making left out."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith(library.code):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for method in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else ():
            if not isinstance(method, ast.FunctionDef) or method.name == "__init__" or method.name in seen:
                continue
            seen.add(method.name)
            parents = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
            for node in ast.walk(method):
                if (
                    not isinstance(node, ast.Attribute)
                    or node.attr != attribute
                    or _last(node.value) != "self"
                ):
                    continue
                if isinstance(node.ctx, ast.Load):
                    yield _Use(method, node, parents)


def _last(node: ast.AST) -> str:
    """The last part of a name; empty for what is none."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _value(node: ast.AST, owner: Any) -> Any:
    """What ``self.name`` and ``self.config.name`` are for a module; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if not isinstance(node, ast.Attribute):
        return None
    if _last(node.value) == "self":
        return getattr(owner, node.attr, None)
    if (
        isinstance(node.value, ast.Attribute)
        and _last(node.value.value) == "self"
        and node.value.attr == "config"
    ):
        return getattr(owner.config, node.attr, None)
    return None
