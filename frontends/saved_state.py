"""Files of ``torch.save`` as sources, and which state dict is meant in what they hold. No torch here at import.

What is no more than plain data and tensors is read here, the rest by torch (:mod:`elastic_ir.frontends.torch_file`).

Checkpoints nest a state dict in dictionaries, next to an optimizer's, an average's, another network's, and masks beside
it. Where more than one could be meant none is chosen: the error lists them, and a key says which.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.errors import MaskError, SourceChangedError, SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.distant import DistantFile, WholeFileNeeded, opened_anywhere
from elastic_ir.formats.torch_zip import STEPS, archive_of, read_zip_records
from elastic_ir.frontends.sources import attach, network_of, traced
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import read_from
from elastic_ir.safety.limits import STATE_LEVELS
from elastic_ir.tensors.lazy import Mask, TensorData

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import TypeIs

    from elastic_ir.checkpoints.record import Step

#: What wrappers (DataParallel and its kin, torch.compile) put before every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
#: What only the state of a ``torch.optim`` optimizer has: its moments stand under numbers or under weights' names.
_OF_OPTIMIZER = "param_groups"
_SHOWN = 6

Keys: TypeAlias = tuple[str, ...]  #: the keys of dictionaries within dictionaries
#: A tensor as a file's reader leaves it: a place in the file, or torch's.
Tensor: TypeAlias = "TensorData | torch.Tensor"


def is_network(item: object) -> TypeIs[nn.Module]:
    """Whether it is a module of torch; without torch there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.nn.Module)


def is_tensor(item: object) -> bool:
    """Whether it is a tensor as a file's reader leaves it."""
    torch = sys.modules.get("torch")
    return isinstance(item, TensorData) or (torch is not None and isinstance(item, torch.Tensor))


def read_pt(path: Path, options: ReadOptions) -> Graph:
    """A file of ``torch.save``: ours, a state dict among whatever a training keeps, or a whole module.

    Torch is imported only where there is more in it than plain data and tensors.
    """
    if path.name.endswith("_states.pt"):
        from elastic_ir.formats.deepspeed_folder import refuse_piece

        refuse_piece(path)
    found, records = saved_in(path, options.trust, options.distant(path), whole=not options.headers_only)
    key, steps = options.key, _steps_in(records, path.name)
    if key is None and steps:
        key = steps[-1].key()
    if key is None and is_network(found):
        return _saved_network(found, path, options)
    ours = "elastic_ir/graph.json" in records and isinstance(found, dict)
    if ours and key is not None:
        raise SourceError(f"{path.name} holds one network, which ElasticIR wrote; leave out the key {key!r}")
    # in our own files every name is meant as it stands
    chosen = Chosen(found, {}) if ours else choose(found, path.name, key)
    if chosen is None:
        under = "" if key is None else f" under {key!r}"
        raise SourceError(f"{path.name} holds a {type(found).__name__} and no state dict{under}")
    given = {name.removesuffix("_mask"): Mask.of(mask, name) for name, mask in chosen.masks.items()}
    held: Any = chosen.held
    if is_network(held):
        graph = _saved_network(held, path, options)
        graph.info = replace(graph.info, left_behind=tuple(chosen.left))
        attach(graph, given)
        return graph
    from elastic_ir.formats.packed_masks import masks_of_records
    from elastic_ir.frontends.masks import masks_from_state

    tensors, pruned = masks_from_state(lazy_tensors(held, path.name))
    description = records.get("elastic_ir/graph.json")
    graph = network_of(Stored(tensors, graph=description), path, options)
    if options.arch is None and description is None:
        _tie(graph, tensors)
    graph.info = replace(graph.info, left_behind=(*chosen.left, *graph.info.left_behind))
    if steps:
        graph.info = replace(graph.info, steps=tuple(step.data() for step in steps))
    attach(graph, masks_of_records(records, path))
    attach(graph, pruned)
    attach(graph, given)
    return graph


def _steps_in(records: Mapping[str, bytes], where: str) -> list[Step]:
    """The changes that led to a training's checkpoint that ElasticIR wrote; none for any other file."""
    if STEPS not in records:
        return []
    from elastic_ir.checkpoints.record import steps_of

    return steps_of(records[STEPS], where)


def _saved_network(network: nn.Module, path: Path, options: ReadOptions) -> Graph:
    with read_from(path.name):
        from elastic_ir.frontends.torch_file import checked_tensors

        # a module computes with a sparse parameter as its own forward has it, which no dense one stands for
        checked_tensors(network.state_dict(), path.name, sparse=False)
        graph = traced(network, options.input_shape)
    graph.info = replace(graph.info, file=path.name)
    return graph


def saved_in(
    path: Path, trust: Sequence[str], distant: DistantFile | None = None, whole: bool = True
) -> tuple[Any, dict[str, bytes]]:
    """What a file of ``torch.save`` holds, and the records that ElasticIR wrote into it.

    The file is opened once by the readers here, and again by torch where it takes more than they read. Raises
    WholeFileNeeded for that where it lies elsewhere (``distant``). Without ``whole`` no tensor is read, and so none
    compared with its checksum.
    """
    try:
        with opened_anywhere(path, "weights", distant) as file:
            archive = archive_of(file, path.name)
            if archive is None or not archive.names_classes:
                from elastic_ir.formats.bin import read_saved

                return read_saved(file, path, archive, whole)
    except SourceChangedError:
        raise
    except SourceError:
        pass  # torch may take what is refused here, and the reader over torch says what is wrong
    if distant is not None:
        raise WholeFileNeeded(f"{path.name} is read by torch, which takes all of it")
    from elastic_ir.frontends.torch_file import read_torch_file

    found = read_torch_file(path, trust)
    return found, {} if is_network(found) else read_zip_records(path)


def lazy_tensors(state: Mapping[str, Any], where: str) -> dict[str, TensorData]:
    """The tensors that a file's reader has left, as lazy ones; SourceError names one that cannot be read."""
    if all(isinstance(tensor, TensorData) for tensor in state.values()):
        return dict(state)
    from elastic_ir.frontends.torch_file import checked_tensors

    return checked_tensors(state, where)


def _tie(graph: Graph, tensors: Mapping[str, TensorData]) -> None:
    """Names of one tensor in a state dict are tied: torch.save keeps what shares memory sharing it."""
    storages: dict[Any, Any] = {}
    for name, data in tensors.items():
        if prod(data.shape):
            weight = graph.weights[name]
            storage = storages.setdefault(_memory(data), weight.storage)
            if storage is not weight.storage:
                graph.weights[name] = replace(weight, storage=storage)


def _memory(data: TensorData) -> object:
    """The same for tensors that are one: the place in a file, or in memory."""
    tensor = getattr(data, "tensor", None)
    if tensor is None:
        return data
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


# -- the state dict that is meant --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The tensors (or the network) that are meant, the masks beside them, and the keys of what else there is."""

    held: dict[str, Tensor] | nn.Module
    masks: dict[str, Any]
    left: tuple[str, ...] = ()
    at: Keys = ()  #: the keys that lead to it


def choose(found: object, where: str, key: str | None = None) -> Chosen | None:
    """The one state dict or network in what a file holds, found at any level; None if there is none.

    ``key`` names it: ``ema``, or with dots ``state.model``. Without, it is the only one that has a weight of two
    dimensions or more. Raises SourceError where several are left, or nothing is under the key.
    """
    inner: Any
    path, inner = _under(found, key, where) if key is not None else ((), found)
    tables = {(*path, *below): table for below, table in _tables(inner)}
    if key is not None and path not in tables and _is_table(inner):
        tables = {path: inner}  # named by the user, whatever its name
    if len(tables) > 1:
        tables = {at: table for at, table in tables.items() if _has_weights(table)} or tables
    if len(tables) > 1:
        first = ".".join(next(iter(tables)))
        raise SourceError(
            f"{where} holds several state dicts: {_listed(tables)}; say which one is meant, for example "
            f"by --key {first} (in Python key={first!r})"
        )
    if not tables:
        return None
    ((at, table),) = tables.items()
    masks = {
        other: mask for other, mask in _masks(found) if other[:-1] == at[: len(other) - 1] and other != at
    }
    given = _only(masks, where)
    left = tuple(_left(found, at, masks))
    held = table if is_network(table) else unwrapped(table)
    return Chosen(held, given or {}, left, at)


def state_dict_of(found: object, where: str = "it") -> dict[str, Tensor] | None:
    """The only state dict in what a file holds, without a wrapper's prefix; None if there is none."""
    chosen = choose(found, where)
    return None if chosen is None or is_network(chosen.held) else chosen.held


def masks_in(found: object, where: str) -> dict[str, Any] | None:
    """The only set of masks in what a file holds beside other things; MaskError where there are several."""
    return _only(dict(_masks(found)), where)


def _only(masks: Mapping[Keys, Mapping[str, Any]], where: str) -> dict[str, Any] | None:
    if len(masks) > 1:
        listed = ", ".join(".".join(path) for path in masks)
        raise MaskError(
            f"{where} holds several sets of masks: {listed}; save the one that is meant to a file of its own"
        )
    return unwrapped(dict(*masks.values())) if masks else None


def _tables(found: object) -> Iterator[tuple[Keys, Mapping[str, Tensor] | nn.Module]]:
    """The state dicts and networks in nested dictionaries; no optimizer's, and no masks."""
    for path, item in _walk(found):
        masks = any(map(_is_mask_key, path))
        if not masks and (is_network(item) or _is_table(item)):
            yield path, item  # type: ignore[misc]


def _masks(found: object) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    for path, item in _walk(found):
        if path and _is_mask_key(path[-1]) and isinstance(item, Mapping) and item:
            named = by_module(item) or item
            arrays = all(isinstance(n, str) and hasattr(v, "shape") for n, v in named.items())
            if arrays:
                yield path, named


def by_module(found: object) -> dict[str, Any] | None:
    """The masks in ``{module: {"weight": mask, "bias": mask or None}}`` by weight name; None for anything else.

    The parameters in it are of the module itself, so that their names have no dots; a checkpoint's state dicts are not.
    """
    if not isinstance(found, Mapping) or not found:
        return None
    made: dict[str, Any] = {}
    for module, masks in found.items():
        if not isinstance(module, str) or not isinstance(masks, Mapping):
            return None
        for name, mask in masks.items():
            if not isinstance(name, str) or "." in name or not (mask is None or hasattr(mask, "shape")):
                return None
            if mask is not None:
                made[f"{module}.{name}"] = mask
    return made or None


def _is_mask_key(key: str) -> bool:
    return key in ("mask", "masks") or key.endswith(("_mask", "_masks"))


def _walk(found: object) -> Iterator[tuple[Keys, object]]:
    """What nested dictionaries hold, by their keys, from the outside to the inside; what is a table is not entered."""
    waiting: list[tuple[Keys, object]] = [((), found)]
    seen: set[int] = set()
    for path, item in waiting:  # it grows
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield path, item
        inner = isinstance(item, Mapping) and not _is_table(item) and _OF_OPTIMIZER not in item
        if inner and len(path) < STATE_LEVELS:
            waiting += [
                ((*path, key), value)
                for key, value in item.items()  # type: ignore[attr-defined]
                if isinstance(key, str) and (isinstance(value, Mapping) or is_network(value))
            ]


def _is_table(item: object) -> bool:
    """A mapping of names to tensors, not empty; nothing of a mixed one is picked out, which would lose the rest."""
    return (
        isinstance(item, Mapping)
        and bool(item)
        and all(isinstance(name, str) and is_tensor(value) for name, value in item.items())
    )


def _has_weights(table: Mapping[str, Tensor] | nn.Module) -> bool:
    return is_network(table) or any(len(tensor.shape) > 1 for tensor in table.values())


def _under(found: object, key: str, where: str) -> tuple[Keys, object]:
    """What stands under a key whose dots lead into dictionaries, or are part of a name."""
    waiting: list[tuple[Keys, object, str]] = [((), found, key)]
    for path, item, rest in waiting:
        if not rest:
            return path, item
        if isinstance(item, Mapping) and len(path) <= STATE_LEVELS:
            for name in item:
                if isinstance(name, str) and name and (rest == name or rest.startswith(f"{name}.")):
                    waiting.append(((*path, name), item[name], rest[len(name) + 1 :]))
    tables = {path: table for path, table in _tables(found) if path}
    holds = f"it holds {_listed(tables)}" if tables else "it is not a dictionary of state dicts"
    raise SourceError(f"{where} has nothing under the key {key!r}; {holds}")


def _listed(tables: Mapping[Keys, Mapping[str, Tensor] | nn.Module]) -> str:
    shown = []
    for path, table in tables.items():
        size = f"a {type(table).__name__}" if is_network(table) else f"{len(table)} tensors"
        shown.append(f"{'.'.join(path)} ({size})")
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _left(found: object, at: Keys, masks: Mapping[Keys, object]) -> Iterator[str]:
    """The keys of what is neither chosen nor a mask, at every level that leads to it."""
    item = found
    for level, step in enumerate(at):
        assert isinstance(item, Mapping)
        for key, value in item.items():
            path = (*at[:level], str(key))
            if key != step and value is not None and path not in masks:
                yield ".".join(path)
        item = item[step]


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The names without what a wrapper has put before every one of them."""
    state = dict(state)
    while state and (
        prefix := next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in state)), None)
    ):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
