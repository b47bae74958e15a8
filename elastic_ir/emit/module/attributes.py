"""Attributes of modules that go by depth: counts, per-layer lists, layer indices, and constants of a block's position.

They are recognised by evidence in the source, never by a class: an integer that equals the number of blocks and whose
name mentions layers is a count, one that equals the block's number in every block an index. A configuration that is
written beside checkpoints follows by the rules for its file; what modules keep for themselves, one by one. Constants
of positions are spread anew over the target's blocks where their rule is evident (:mod:`elastic_ir.plans.positions`);
one that differs from block to block by no known rule stays with its block, and is reported. Recurrent modules keep
lists of their layers' parameters.

All of it works on modules and on outlines of modules (:mod:`elastic_ir.formats.pickles.description`), which need no
torch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from elastic_ir.errors import PlanError
from elastic_ir.formats.pickles.description import Outline, OutlineTensor, is_layer
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import outward
from elastic_ir.ir.numbering import ALL_STATES, COUNT, DEPTHS, is_index_list
from elastic_ir.ir.structure import Block, Container, Structure
from elastic_ir.tensors.torch_bridge import copy_module
from elastic_ir.tensors.weights import Weight, computes_weights

if TYPE_CHECKING:
    from torch import nn

_INDEX = re.compile(r"(idx|index|layer|block|_id$|^i$)")
#: A constant of a block: the path of the module that holds it, within the block, and the attribute.
Key: TypeAlias = tuple[str, str]
_AROUND = 2  #: layers, a first and a last one, that a count may include besides a list's
KEPT = "kept from the source"  #: reported for a constant that follows no known rule


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module of a path, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


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
    from elastic_ir.checkpoints.config.tables import Reader
    from elastic_ir.checkpoints.config.taps import taps_followed
    from elastic_ir.formats.model_folder import CONFIG

    before = config.to_dict()
    stacks, names = [Stack.of(container) for container in containers], list(target.state_dict())
    try:
        made, _ = reindexed(before, stacks, names)
    except PlanError:
        return set()
    with suppress(PlanError):  # what is refused in a file stays as it is
        made = followed(made, CONFIG, stacks, names, is_config=True).document
        made, _ = taps_followed(made, Reader(before, stacks, names))
    return set(_take_over(config, before, made))


def _take_over(config: Any, before: dict[str, Any], made: dict[str, Any]) -> Iterator[int]:
    yield id(config)
    # the names of all states first: the others are checked against them
    for name, value in sorted(made.items(), key=lambda item: item[0] != ALL_STATES):
        held = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(held, "__dict__"):  # a configuration inside
            yield from _take_over(held, before[name], value)
        elif value != before.get(name):
            setattr(config, name, tuple(value) if isinstance(held, tuple) else value)


def update_counts(target: nn.Module, container: Container, done: Set[int] = frozenset()) -> None:
    """Bring the counts and per-layer lists of the modules around a container up to date; not those of some ids."""
    old, new = container.source_count, len(container.children)
    order = [container.source_index(child.origin) for child in container.children]
    common = {id(target), *(id(getattr(target, name, None)) for name in ("config", "cfg"))}
    for holder in _holders(target, [container.path], done):
        # what the whole network shares may count two stacks; a stack's own configuration counts itself
        _update(holder, container.path if id(holder) in common else "", old, new, order)
        _move_taps(holder, container)


def shift_counts(target: nn.Module, containers: Sequence[Container]) -> bool:
    """Change the counts that include the layers around a list (``range(depth - 2)``) as it changed; whether any did.

    Nothing but running the network proves what such a number counts.
    """
    done: set[tuple[int, str]] = set()
    for container in containers:
        old, step = container.source_count, len(container.children) - container.source_count
        owner = submodule(target, container.path.rpartition(".")[0])
        for name, value in list(vars(owner).items()) if owner is not None and step else ():
            around = type(value) is int and 0 < value - old <= _AROUND and COUNT.fullmatch(name)
            if around and (id(owner), name) not in done:  # of lists that advance together the first one's
                setattr(owner, name, value + step)
                done.add((id(owner), name))
    return bool(done)


def _move_taps(holder: Any, container: Container) -> None:
    """Bring what a backbone says of the states that it gives out, all of which it names, to their new places."""
    held = {name.lstrip("_"): name for name in vars(holder)}  # properties may lie over them
    if ALL_STATES not in held:
        return
    from elastic_ir.checkpoints.config.taps import taps_of
    from elastic_ir.checkpoints.stacks import Stack

    # the configuration may show that the states are those between stages
    around = getattr(getattr(holder, "config", None), "__dict__", {})
    table = {name: _listed(value) for name, value in around.items()}
    table |= {plain: _listed(vars(holder)[name]) for plain, name in held.items()}
    for plain, value in taps_of(table, Stack.of(container)).items():
        if plain in held:
            own = vars(holder)[held[plain]]
            setattr(holder, held[plain], tuple(value) if isinstance(own, tuple) else value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
    for holder in _holders(target, [container.path for container in containers], done):
        for name, value in list(vars(holder).items()):
            if isinstance(value, (list, tuple)) and list(value) == old and DEPTHS.search(name):
                setattr(holder, name, type(value)(new))


def _holders(target: nn.Module, paths: Sequence[str], done: Set[int]) -> Iterator[Any]:
    """The modules on the way to containers, the nearest first, and their configuration objects, each once."""
    seen = set(done)
    for path in paths:
        for module in map(target.get_submodule, outward(path)):
            for holder in (module, *(getattr(module, name, None) for name in ("config", "cfg"))):
                if hasattr(holder, "__dict__") and id(holder) not in seen:
                    seen.add(id(holder))
                    yield holder


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


def renumber_indices(source: nn.Module, place: nn.Module) -> set[str]:
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


# -- constants of positions --------------------------------------------------------------------------------------------


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
        return holder._modules[role] is None or is_layer(holder._modules[role], "Identity")
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
        if not stage.container.parameters  # a recurrent module has no constant of a layer
    ]
    return found if all(len(block.children) == 1 for _, block, _ in found) else None


def _target_slots(target: nn.Module, structure: Structure) -> list[_Slot] | None:
    blocks = _blocks(structure)
    if blocks is None or any(submodule(target, block.path) is None for _, block, _ in blocks):
        return None  # an entry of a list of parameters has no attributes
    return [_Slot(target.get_submodule(block.path), stage, entry) for stage, block, entry in blocks]


def _source_slots(live: nn.Module, structure: Structure) -> list[_Slot] | None:
    """The source's blocks: of each stage those from its first one to the next stage's in the same container."""
    if _blocks(structure) is None:
        return None
    slots: list[_Slot] = []
    for index, stage in enumerate(structure.stages):
        container = stage.container
        if container.parameters:
            continue
        firsts = [other.all_blocks[0] for other in structure.stages if other.container is container]
        starts = sorted({container.source_index(block.origin) for block in firsts})
        first = start = container.source_index(stage.all_blocks[0].origin)
        end = min((other for other in starts if other > start), default=container.source_count)
        if container.falling:  # runs from its last child on
            start, end = 0, start + 1
        for offset in reversed(range(start, end)) if container.falling else range(start, end):
            part = submodule(live, container.child_path(offset))
            if part is None:
                return None
            slots.append(_Slot(part, index, stage.entry is not None and offset == first))
    return slots


# -- recurrent modules -------------------------------------------------------------------------------------------------


def set_layers(module: nn.Module, path: str, graph: Graph) -> None:
    """Give a recurrent module the parameters that the graph has under its path, without values, and their count.

    What each takes over of its source's parameter is whether it is trained. Its lists of tensors are made by
    :func:`refresh`, once the parameters have values.
    """
    from elastic_ir.ir.recurrent import numbered

    head = f"{path}." if path else ""
    own = [name for name in graph.weights if name.rpartition(".")[0] == path and numbered(name[len(head) :])]
    held = dict(module._parameters)
    made: dict[str, Any] = {}
    for name in own:
        weight = graph.weights[name]
        made[name[len(head) :]] = _like(held.get(weight.origin.rpartition(".")[2]), weight, module)
    module._parameters.clear()
    module._parameters.update(made)
    rows: dict[tuple[str, str], list[str]] = {}
    for role in made:
        place = numbered(role)
        assert place is not None
        rows.setdefault((place.number, place.suffix), []).append(role)
    vars(module)["num_layers"] = len({number for number, _ in rows})
    vars(module)["_all_weights"] = list(rows.values())
    vars(module)["_flat_weights_names"] = [role for row in rows.values() for role in row]


def _like(source: nn.Parameter | None, weight: Weight, module: object) -> object:
    """A parameter of a weight's shape without values; it is trained as the source's is, and of its dtype."""
    trained = source.requires_grad if source is not None else True
    if isinstance(module, Outline):
        return OutlineTensor(weight.shape, weight.dtype, trained)
    import torch

    dtype = source.dtype if source is not None else getattr(torch, weight.dtype)
    device = source.device if source is not None else None
    return torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=device), requires_grad=trained)


def refresh(module: nn.Module) -> None:
    """Let recurrent modules run over the parameters that they have; they keep a list of them beside the table."""
    for part in _recurrent(module):
        part._flat_weights = []
        part._init_flat_weights()


def _recurrent(module: nn.Module) -> Iterator[Any]:
    from torch import nn

    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            yield part


# -- copies, and lists of parameters -----------------------------------------------------------------------------------


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a module with a memo, also where its weights are computed, or it holds results of a run."""
    outline: Any = module
    if isinstance(outline, Outline):
        return cast("nn.Module", copy.deepcopy(outline, memo))
    if not any(map(computes_weights, module.modules())):
        return copy_module(module, memo)
    from elastic_ir.tickets import parametrizations

    return parametrizations.copied(module, memo)


def is_parameter_list(module: object) -> bool:
    """Whether a module's numbered children are parameters."""
    return is_layer(module, "ParameterList", "ParameterDict")


def refill_parameters(source: nn.Module, target: nn.Module, origins: Mapping[str, str]) -> None:
    """Give a list the entries named, each in the place of the source's of that name."""
    entries = {name: source._parameters[origin] for name, origin in origins.items()}
    target._parameters.clear()
    target._parameters.update(entries)
    if is_layer(target, "ParameterList"):
        vars(target)["_size"] = len(entries)
    elif is_layer(target, "ParameterDict"):
        vars(target)["_keys"] = dict.fromkeys(entries)
