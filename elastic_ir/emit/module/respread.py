"""Position constants without a reference: spread anew over the target's blocks where their rule is evident.

Evidence is in the source's blocks alone (:mod:`elastic_ir.plans.positions`); a constant that differs from block to
block by no known rule stays with its block, and is reported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from elastic_ir.emit.module.layers import submodule
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block, Structure

#: A constant of a block: the path of the module that holds it, within the block, and the attribute.
Key: TypeAlias = tuple[str, str]


KEPT = "kept from the source"  #: reported for a constant that follows no known rule


@dataclass
class _Slot:
    """One block on either side."""

    module: nn.Module
    stage: int
    entry: bool  #: whether it is its stage's entry


def respread_constants(live: nn.Module, target: nn.Module, graph: Graph) -> dict[str, str]:
    """Give the blocks of a re-filled module the constants of their new places.

    ``live`` is the source and stays as it is. Returns for each attribute that differs between blocks what was done:
    the rule in words, or ``"kept from the source"``.
    """
    structure = graph.structure
    before, after = _source_slots(live, structure), _target_slots(target, structure)
    if before is None or after is None:
        return {}
    if [(slot.stage, slot.entry) for slot in before] == [(slot.stage, slot.entry) for slot in after]:
        return {}
    done: dict[str, str] = {}
    for key, values in sorted(_constants(before).items()):
        if len(set(values.values())) == 1 and len(values) == len(before):
            continue
        known = [values.get(index, _absent(slot.module, key)) for index, slot in enumerate(before)]
        numbers = [value for value in known if value is not None]
        holder = next(before[index].module for index, value in values.items())
        found = None
        if len(numbers) == len(known):
            found = _spread(numbers, before, after)
        if found is None:
            if _differs_in_a_stage(values, before):
                done.setdefault(key[1], KEPT)
            continue
        for slot, value in zip(after, found[0], strict=True):
            _set(slot.module, key, value, holder)
        done[key[1]] = found[1]
    return done


def _spread(values: list[float], before: list[_Slot], after: list[_Slot]) -> tuple[list[float], str] | None:
    """A constant's values in the target's blocks, and the rule in words; None where its values show no rule."""
    from elastic_ir.plans.positions import Place, respread  # most networks have no such constants

    source, target = ([Place(slot.stage, slot.entry) for slot in slots] for slots in (before, after))
    return respread(values, source, target)


def _constants(slots: list[_Slot]) -> dict[Key, dict[int, float]]:
    """The float attributes of each block's modules, by block."""
    found: dict[Key, dict[int, float]] = {}
    for index, slot in enumerate(slots):
        for path, part in slot.module.named_modules():
            for name, value in vars(part).items():
                if type(value) is float and not name.startswith("_"):
                    found.setdefault((path, name), {})[index] = value
    return found


def _differs_in_a_stage(values: dict[int, float], slots: list[_Slot]) -> bool:
    """Whether blocks of one shape differ: what follows from channels alone is not a constant of a position."""
    seen: dict[int, set[float]] = {}
    for index, value in values.items():
        if not slots[index].entry:
            seen.setdefault(slots[index].stage, set()).add(value)
    return any(len(found) > 1 for found in seen.values())


def _absent(block: nn.Module, key: Key) -> float | None:
    """0 where nothing or an identity stands for a layer whose rate is 0; None where there is no place for it."""
    return 0.0 if _is_vacant(block, key[0]) else None


def _is_vacant(block: nn.Module, path: str) -> bool:
    parent, _, role = path.rpartition(".")
    holder = submodule(block, parent)
    if holder is None or not role:
        return False
    if role in holder._modules:
        return holder._modules[role] is None or isinstance(holder._modules[role], nn.Identity)
    return vars(holder).get(role, 0) is None


def _set(block: nn.Module, key: Key, value: float, holder: nn.Module) -> None:
    path, name = key
    part = submodule(block, path)
    if _is_vacant(block, path):
        if value == 0.0:
            return
        parent, _, role = path.rpartition(".")
        owner = block.get_submodule(parent)
        part = copy.deepcopy(holder.get_submodule(path)).train(owner.training)
        vars(owner).pop(role, None)
        owner._modules[role] = part
    if part is not None and vars(part).get(name) != value:
        setattr(part, name, value)


def _blocks(structure: Structure) -> list[tuple[int, Block, bool]] | None:
    """Stage, block and whether it is the entry, in running order; None where blocks are several modules."""
    found = [
        (index, block, block is stage.entry)
        for index, stage in enumerate(structure.stages)
        for block in stage.all_blocks
    ]
    return found if all(len(block.children) == 1 for _, block, _ in found) else None


def _target_slots(target: nn.Module, structure: Structure) -> list[_Slot] | None:
    blocks = _blocks(structure)
    if blocks is None:
        return None
    return [_Slot(target.get_submodule(block.path), stage, entry) for stage, block, entry in blocks]


def _source_slots(live: nn.Module, structure: Structure) -> list[_Slot] | None:
    """The source's blocks: of each stage those from its first one to the next stage's in the same container."""
    if _blocks(structure) is None:
        return None
    slots: list[_Slot] = []
    for index, stage in enumerate(structure.stages):
        container = stage.container
        firsts = [other.all_blocks[0] for other in structure.stages if other.container is container]
        starts = sorted({container.source_index(block.origin) for block in firsts})
        start = container.source_index(stage.all_blocks[0].origin)
        end = min((other for other in starts if other > start), default=container.source_count)
        for offset in range(start, end):
            part = submodule(live, container.child_path(offset))
            if part is None:
                return None
            slots.append(_Slot(part, index, stage.entry is not None and offset == start))
    return slots
