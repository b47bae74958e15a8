"""Second registrations: numbered lists that hold the blocks of a stage once more, under other names.

``self.views[i].block`` may be ``self.blocks[i]``, and an encoder that two heads share has a name in each. The weights
are tied, name by name, and that is how such a list is known. Its members are further slots of the blocks, so that both
registrations grow and shrink together, as they do where the network is built deeper. So do the members of
``[head] * n``, a list of one module for all blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.numbering import split_number, width_of
from elastic_ir.ir.structure import Block, Child, Container, Stage

#: A list by its path and the prefix of its members' names.
Key = tuple[str, str]


def add_second_registrations(graph: Graph, stages: Sequence[Stage]) -> None:
    """Let the blocks of stages have the slots of lists that hold them a second time, in containers of their own."""
    tied = _tied_names(graph)
    if not tied:
        return
    blocks: dict[Container, list[Block]] = defaultdict(list)
    homes: dict[Child, Container] = {}
    paths: dict[str, Child] = {}
    for stage in stages:
        for container in stage.containers:
            blocks[container] += stage.all_blocks
            homes.update(dict.fromkeys(container.children, container))
            paths.update((child.path, child) for child in container.children)
    found: dict[Container, dict[Key, _Twin]] = defaultdict(lambda: defaultdict(_Twin))
    for names in tied:
        inside = [(name, head) for name in names if (head := head_in(name, paths)) is not None]
        outside = [name for name in names if head_in(name, paths) is None]
        for name, head in inside[:1] if len({head for _, head in inside}) == 1 else ():
            child = paths[head]
            for other in outside:
                for key, number, rest in _places(other):
                    twin = found[homes[child]][key]
                    twin.members.setdefault(number, set()).add(child)
                    twin.parallel &= rest == name[len(head) :]
    numbers = _numbers(graph, {key for twins in found.values() for key in twins})
    for container, twins in found.items():
        for key, twin in twins.items():
            made = _container_of(container, key, twin, numbers[key], blocks[container])
            if made is not None:
                join(made[0], made[1], container, stages)
    _add_repeated(graph, stages, tied)


def _add_repeated(graph: Graph, stages: Sequence[Stage], tied: Sequence[Sequence[str]]) -> None:
    """Let blocks have the members of a list of one module, of as many as there are blocks, that each of them runs."""
    paths = {child.path for stage in stages for box in stage.containers for child in box.children}
    members: dict[Key, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for names in tied:
        for name in names if len(names) > 2 else ():
            if head_in(name, paths) is None:
                for key, number, rest in _places(name):
                    members[key][number][rest] = id(graph.weights[name].storage)
    repeated = {
        key: found
        for key, found in members.items()
        if len(found) > 2 and all(one == next(iter(found.values())) for one in found.values())
    }
    numbers = _numbers(graph, set(repeated))
    for key, found in repeated.items():
        held = {storage for rest in found.values() for storage in rest.values()}
        base = min(map(int, found))
        if numbers[key] != found.keys() or sorted(map(int, found)) != [base + at for at in range(len(found))]:
            continue
        for stage in stages:
            blocks = stage.all_blocks
            extra = len(found) - len(blocks)  # one for another place
            if extra in (0, 1) and all(_reads(block, graph, held) for block in blocks):
                made = Container(*key, base, native=not key[1], width=width_of(found) or 1, tail=extra)
                made.children = [Child(made.child_path(at), made.child_path(at)) for at in range(len(found))]
                made.source_count = len(made.children)
                stage.containers = (*stage.containers, made)
                for block, child in zip(blocks, made.children, strict=False):
                    block.children.append(child)
                break


def _reads(block: Block, graph: Graph, storages: set[int]) -> bool:
    """Whether a block reads all of some storages."""
    read = {id(graph.weights[name].storage) for node in block.nodes for name in node.weight_names()}
    return storages <= read


class _Twin:
    """A numbered list outside the stages: which children of a container its members' weights are tied with."""

    def __init__(self) -> None:
        self.members: dict[str, set[Child]] = {}  #: by the number as it is written
        self.parallel = True  #: whether names within a member are those within the child


def _tied_names(graph: Graph) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, weight in graph.weights.items():
        names[id(weight.storage)].append(name)
    return [held for held in names.values() if len(held) > 1]


def _places(name: str) -> Iterator[tuple[Key, str, str]]:
    """The numbered lists that a name lies in: each with its number there, and the rest of the name."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        split = split_number(part)
        if split is not None:
            yield (".".join(parts[:at]), split[0]), split[1], "".join(f".{one}" for one in parts[at + 1 :])


def _numbers(graph: Graph, keys: set[Key]) -> dict[Key, set[str]]:
    """All numbers that the members of some lists have in the names of weights."""
    found: dict[Key, set[str]] = {key: set() for key in keys}
    for name in graph.weights:
        for key, number, _ in _places(name):
            if key in found:
                found[key].add(number)
    return found


def _container_of(
    container: Container, key: Key, twin: _Twin, numbers: set[str], blocks: Sequence[Block]
) -> tuple[Container, dict[Child, Child]] | None:
    """A list as a container whose children are second slots, with the first slot of each; None for any other list."""
    width = width_of(numbers)
    if (
        width is None
        or numbers != twin.members.keys()
        or any(len(held) > 1 for held in twin.members.values())
    ):
        return None
    members = {int(number): child for number, (child,) in twin.members.items()}
    place = {child: at for at, child in enumerate(container.children)}
    offsets = {number - place[child] for number, child in members.items()}
    listed = [child for child in container.children if any(child in block.children for block in blocks)]
    weighted = set(members.values())
    path, prefix = key
    if (
        twin.parallel and len(offsets) == 1
    ):  # the container itself once more: those without weights are in it too
        base = offsets.pop()
        made = Container(path, prefix, base, native=container.native, width=width, tail=container.tail)
        made.children = [Child(made.child_path(at), made.child_path(at)) for at in place.values()]
        firsts = dict(zip(made.children, container.children, strict=True))
    else:  # the blocks in something around them
        base = min(members)
        firsts_of = [next((c for c in block.children if c in weighted), None) for block in blocks]
        in_order = [members.get(base + at) for at in range(len(members))]
        if len(members) < 2 or in_order != firsts_of or len(weighted) != len(members):
            return None
        made = Container(path, prefix, base, native=not prefix, width=width)
        made.children = [Child(made.child_path(at), made.child_path(at)) for at in range(len(members))]
        firsts = {
            second: first for second, first in zip(made.children, in_order, strict=True) if first is not None
        }
    made.source_count = len(made.children)
    return made, {second: first for second, first in firsts.items() if first in listed}


def join(made: Container, firsts: dict[Child, Child], container: Container, stages: Sequence[Stage]) -> None:
    """Let the blocks of a container have the slots of another one, each with the first slot that it goes with."""
    for stage in stages:
        if container in stage.containers:
            stage.containers = (*stage.containers, made)
            for block in stage.all_blocks:
                block.children += [second for second, first in firsts.items() if first in block.children]
