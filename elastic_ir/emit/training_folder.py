"""Folders of Accelerate's ``save_state`` at another depth: weights change, optimizers follow, all else is copied.

Every file keeps its name, so that ``accelerator.load_state`` takes the folder for the deeper network. Weights are
streamed, and so is what is sharded; an optimizer in one file is loaded as a whole.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.checkpoints.card import plan_text
from elastic_ir.checkpoints.dcp.follow import beside, followed
from elastic_ir.checkpoints.dcp.write import write_followed
from elastic_ir.checkpoints.read import inside
from elastic_ir.checkpoints.record import Origin, Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.side_files import SideFile, copy_side_file
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.emit import refuse_without_values
from elastic_ir.emit.training_file import Followed, Rebuilder, parameter_names
from elastic_ir.errors import EmitError, OutputError, PlanError, SourceError, first_line
from elastic_ir.formats.dcp.folder import is_dcp, read_folder
from elastic_ir.formats.files import atomic_folder, stamp_of
from elastic_ir.formats.model_folder import RECORD, label_of
from elastic_ir.formats.training_folder import CUSTOM, OPTIMIZERS, TrainingFolder, networks_in
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.recipes import factor_of
from elastic_ir.version import __version__

if TYPE_CHECKING:
    from elastic_ir.tensors.lazy import TensorData


def write_training_folder(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Write a graph that was read from such a folder as one; the path written.

    Raises EmitError where an optimizer cannot follow, OutputError where the target is taken, and for masks.
    """
    source = graph.origin
    if not isinstance(source, TrainingFolder):
        raise EmitError(f"{graph.name} was not read from a folder of Accelerate, so it has no form of one")
    return save_training_folder(graph, path, source)


def save_training_folder(
    graph: Graph, path: Path, source: TrainingFolder, before: Graph | None = None
) -> list[Path]:
    """The same for a graph of any kind over the folder's tensors, which ``before`` was before it was changed.

    One that was traced has its parameters in the network's order.
    """
    if any(weight.mask is not None for weight in graph.weights.values()):
        raise OutputError(
            "a folder of a training has no place for masks; write the weights alone, with -o NAME.safetensors"
        )
    if graph.earlier:
        raise PlanError(
            f"{graph.name} was changed at two levels, of which one record states one; write it after each change"
        )
    refuse_without_values(graph)
    traced = before is not None and before.is_program
    names = parameter_names(before) if before is not None and traced else source.parameters
    writer = _Writer(graph, source, names, traced or source.ordered)
    steps = steps_after(graph, read_record(source.folder), _step(graph, source))
    with atomic_folder(path) as room:
        writer.write_network(room)
        for name in source.along():
            if name != RECORD:
                writer.write_other(name, room)
        if steps:
            (room / RECORD).write_text(record_text(steps), encoding="utf-8")
    graph.emitted = replace(graph.emitted, beside=writer.followed.facts())
    return [path]


class _Writer:
    """Writes one part of a folder after the other, and knows what has become of each."""

    def __init__(self, graph: Graph, source: TrainingFolder, names: Sequence[str], ordered: bool) -> None:
        self.graph, self.source = graph, source
        prefix = graph.info.prefix
        self.rebuilder = Rebuilder(graph, (), source.tensors, prefix, names, ordered)
        networks = networks_in(source.folder)
        optimizers = [name for name in source.along() if OPTIMIZERS.fullmatch(name)]
        #: the optimizers of the network: all, or of several networks the one of its number
        self.mine = optimizers
        if len(networks) > 1 and optimizers:
            if len(optimizers) != len(networks):
                raise EmitError(
                    f"{source.folder} has {len(networks)} networks and {len(optimizers)} optimizers, so which of them "
                    f"is of {source.network} is not known; write the weights alone, with -o NAME.safetensors"
                )
            number = networks.index(source.network)
            self.mine = [sorted(optimizers, key=_number)[number]]

    @property
    def followed(self) -> Followed:
        """What has become of the parts."""
        return self.rebuilder.followed

    def write_network(self, room: Path) -> None:
        """Write the network's tensors in the form that they had."""
        source, graph = self.source, self.graph
        target = room / source.network
        if source.sharded is not None:
            follow = followed(graph, source.sharded)
            write_followed(follow, source.sharded, target)
            return
        prefix = graph.info.prefix
        known = {
            name.removeprefix(prefix) for name in source.tensors
        }  # of what is tied one name may be there
        emitted = graph.weights.emitted()
        tensors: dict[str, TensorData] = {
            prefix + name: emitted[name]
            for name, weight in graph.weights.items()
            if weight.persistent and (weight.source or weight.origin in known)
        }
        if target.suffix == ".bin":
            from elastic_ir.formats.torch_zip import write_state

            write_state(target, tensors)
        else:
            from elastic_ir.formats.safetensors import write_safetensors

            write_safetensors(target, tensors, {"format": "pt", **source.metadata})

    def write_other(self, name: str, room: Path) -> None:
        """Write what lies beside the network: changed where it is about the network, else as it is."""
        path = self.source.folder / name
        optimizer = name in self.mine
        if path.is_dir():
            if optimizer and is_dcp(path) and self.source.sharded is not None:
                self._write_sharded(path, room / name)
            else:
                self._copy(path, room)
            return
        if not (optimizer or CUSTOM.fullmatch(name)) or not self._rebuilt(path, room / name, optimizer):
            self._copy(path, room)

    def _write_sharded(self, path: Path, target: Path) -> None:
        """An optimizer in shards, by the names of its parameters."""
        source, graph = self.source.sharded, self.graph
        assert source is not None
        held = read_folder(path)
        held.network, held.others = source.network, source.others
        targets: dict[str, list[str]] = {}
        for name, weight in graph.weights.items():
            if not weight.source:
                targets.setdefault(weight.origin, []).append(name)
        follow = beside(held, Stack.all_of(graph), targets)
        write_followed(follow, held, target)
        self.followed.optimizers.append(path.name)

    def _rebuilt(self, path: Path, target: Path, optimizer: bool) -> bool:
        """Write a file with what is of the network in it at the new depth; whether anything is."""
        import torch

        try:
            found = torch.load(
                inside(path, self.source.folder.resolve()), "cpu", weights_only=True, mmap=True
            )
        except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
            if not optimizer:
                return False
            raise SourceError(
                f"{path} holds more than tensors and plain data, and cannot be written again as it is "
                f"({first_line(error)[:120]}); write the weights alone, with -o NAME.safetensors"
            ) from error
        before = len(self.followed.optimizers) + len(self.followed.averages)
        kept = list(self.followed.kept)
        fresh = self.rebuilder.rebuilt(found, (path.name.partition(".")[0],))
        self.followed.kept[:] = kept
        if len(self.followed.optimizers) + len(self.followed.averages) == before:
            if optimizer:
                raise SourceError(
                    f"{path} is no optimizer's state (a dictionary with state and param_groups)"
                )
            return False
        torch.save(fresh, target)
        return True

    def _copy(self, path: Path, room: Path) -> None:
        """Copy a file, or all files of a folder, as they are."""
        root = self.source.folder
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file():
                inside(one, root.resolve())
                status = one.stat()
                name = one.relative_to(root).as_posix()
                copy_side_file(SideFile(name, one, status.st_size, stamp_of(status)), room / name)
        self.followed.kept.append(path.name)


def _number(name: str) -> int:
    match = OPTIMIZERS.fullmatch(name)
    return int(match["number"] or 0) if match else 0


def _step(graph: Graph, source: TrainingFolder) -> Step:
    """What is done now."""
    lineage = {
        name: Origin(weight.origin, weight.source, factor_of(weight.storage.data))
        for name, weight in graph.weights.items()
        if weight.persistent
    }
    names = graph.edits.sources
    plan: Mapping[str, Any] = {stack.label: plan_text(stack, names) for stack in Stack.all_of(graph)}
    folders = tuple(label_of(one.folder) for one in (source, *source.others))
    return Step(__version__, folders, plan, lineage, gone_from(source.tensors, lineage))
