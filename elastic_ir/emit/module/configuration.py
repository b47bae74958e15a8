"""Configurations: the counts, per-layer lists and layer indices that a network keeps about its own depth.

They are recognised by evidence in the source, never by a class: an integer that equals the number of blocks and whose
name mentions layers is a count, one that equals the block's number in every block an index. A configuration that is
written beside checkpoints follows by the rules for its file; what modules keep for themselves, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from typing import Any

from torch import nn

from elastic_ir.errors import PlanError
from elastic_ir.ir.numbering import COUNT, DEPTHS, is_index_list
from elastic_ir.ir.structure import Container

_INDEX = re.compile(r"(idx|index|layer|block|_id$|^i$)")


def update_configuration(target: nn.Module, containers: Sequence[Container]) -> set[int]:
    """Set the new depth in the network's own configuration, as in its file beside a checkpoint.

    Returns the ids of the objects that are done: none where no configuration gives its content (``to_dict``), or where
    the rules for files cannot express the new depth.
    """
    config: Any = getattr(target, "config", None)
    if not callable(getattr(config, "to_dict", None)):
        return set()
    from elastic_ir.checkpoints.config.depth import Stack, reindexed
    from elastic_ir.checkpoints.config.entries import followed
    from elastic_ir.formats.model_folder import CONFIG

    before = config.to_dict()
    stacks, names = [Stack.of(container) for container in containers], list(target.state_dict())
    try:
        made, _ = reindexed(before, stacks, names)
    except PlanError:
        return set()
    with suppress(PlanError):  # what is refused in a file stays as it is
        made = followed(made, CONFIG, stacks, names).document
    return set(_take_over(config, before, made))


def _take_over(config: Any, before: dict[str, Any], made: dict[str, Any]) -> Iterator[int]:
    yield id(config)
    for name, value in made.items():
        held = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(held, "__dict__"):  # a configuration inside
            yield from _take_over(held, before[name], value)
        elif value != before.get(name):
            setattr(config, name, tuple(value) if isinstance(held, tuple) else value)


def update_counts(target: nn.Module, container: Container, done: Set[int] = frozenset()) -> None:
    """Bring the counts and per-layer lists of the modules around a container up to date; not those of some ids."""
    old, new = container.source_count, len(container.children)
    order = [container.source_index(child.origin) for child in container.children]
    done = set(done)
    common = {id(target), *(id(getattr(target, name, None)) for name in ("config", "cfg"))}
    for holder in _holders(target, container.path):
        if id(holder) not in done:
            done.add(id(holder))
            # what the whole network shares may count two stacks; a stack's own configuration counts itself
            _update(holder, container.path if id(holder) in common else "", old, new, order)


def update_stage_counts(
    target: nn.Module, containers: Sequence[Container], done: Set[int] = frozenset()
) -> None:
    """Update lists of all stages' depths (Swin's and ConvNeXt's ``depths``), recognised by name and values.

    Values alone prove nothing: a stage may have as many heads as blocks.
    """
    old = [container.source_count for container in containers]
    new = [len(container.children) for container in containers]
    if len(old) < 2:
        return
    done = set(done)
    for container in containers:
        for holder in _holders(target, container.path):
            if id(holder) in done:
                continue
            done.add(id(holder))
            for name, value in list(vars(holder).items()):
                if isinstance(value, (list, tuple)) and list(value) == old and DEPTHS.search(name):
                    setattr(holder, name, type(value)(new))


def _holders(target: nn.Module, path: str) -> Iterator[Any]:
    """The modules on the way to a container, the nearest first, and their configuration objects."""
    while True:
        module = target.get_submodule(path)
        yield module
        for name in ("config", "cfg"):
            config = getattr(module, name, None)
            if config is not None and hasattr(config, "__dict__"):
                yield config
        if not path:
            return
        path = path.rpartition(".")[0]


def _update(holder: Any, path: str, old: int, new: int, order: list[int]) -> None:
    """Set the counts and re-index the lists of one holder; ``path`` distinguishes stacks where it is shared."""
    values = vars(holder)
    counts = [
        name
        for name, value in values.items()
        if type(value) is int and value == old and COUNT.fullmatch(name)
    ]
    chosen = [name for name, value in values.items() if is_index_list(name, value, old)]
    for name in chosen:
        members = set(values[name])
        kept = [place for place, source in enumerate(order) if source in members]
        setattr(holder, name, type(values[name])(kept))
    lists = [
        name
        for name, value in values.items()
        if isinstance(value, (list, tuple))
        and len(value) == old
        and len(value) > 1
        and name not in chosen
        and not name.startswith("_")
    ]
    for side, other in (("decoder", "encoder"), ("encoder", "decoder")):
        # two stacks in one configuration: the name says whose count it is
        if side in path and any(side in name for name in counts):
            counts = [name for name in counts if side in name]
        counts = [name for name in counts if not (side in path and other in name and other not in path)]
    for name in counts:
        setattr(holder, name, new)
    for name in lists:
        if "layer" in name or "block" in name or "attention" in name or "mlp" in name:
            kept = [values[name][index] for index in order]
            setattr(holder, name, tuple(kept) if isinstance(values[name], tuple) else kept)


def renumber_indices(source: nn.Module, place: nn.Module, container: Container) -> set[str]:
    """Set integers that number the blocks (an attention's ``layer_idx``) to the target's numbers; their names."""
    done: set[str] = set()
    numbered = [
        {
            (path, name): value
            for path, module in child.named_modules()
            for name, value in vars(module).items()
            if type(value) is int and not name.startswith("_")
        }
        for child in source.children()
    ]
    if len(numbered) < 2:
        return done
    for key, first in numbered[0].items():
        values = [table.get(key) for table in numbered]
        evident = values == list(range(first, first + len(values)))
        if evident and (len(values) > 2 or _INDEX.search(key[1])):
            for number, child in enumerate(place.children()):
                setattr(child.get_submodule(key[0]), key[1], first + number)
                done.add(key[1])
    return done
