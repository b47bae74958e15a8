"""Folders of Accelerate's ``save_state`` at another depth: weights change, optimizers follow, all else is copied.

Every file keeps its name, so that ``accelerator.load_state`` takes the folder for the deeper network. Weights are
streamed, and so is what is sharded; an optimizer in one file is loaded as a whole. Further files with the network's
names follow as well, or are left out: none of them stays at the source's depth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.checkpoints.card import plan_text
from elastic_ir.checkpoints.dcp.follow import beside, followed
from elastic_ir.checkpoints.dcp.write import write_followed
from elastic_ir.checkpoints.read import inside, tensors_in
from elastic_ir.checkpoints.record import Origin, Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.side_files import SideFile, copy_side_file
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.training_folder import training_folder
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.checkpoints.write import index_text, sharded
from elastic_ir.emit import refuse_without_values
from elastic_ir.emit.optimizer_owner import optimizers_of
from elastic_ir.emit.training_file import Followed, Rebuilder, parameter_names
from elastic_ir.errors import EmitError, OutputError, PlanError, SourceError
from elastic_ir.formats import PYTORCH, SAFETENSORS
from elastic_ir.formats.dcp.folder import is_dcp, read_folder
from elastic_ir.formats.deepspeed_folder import pieces_in
from elastic_ir.formats.files import atomic_folder, stamp_of
from elastic_ir.formats.model_folder import CONFIG, INDEX, RECORD, Layout, label_of
from elastic_ir.formats.plain_file import load_plain
from elastic_ir.formats.training_folder import (
    CUSTOM,
    TrainingFolder,
    network_number,
    networks_in,
    optimizer_number,
)
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.recipes import Recipe, factor_of
from elastic_ir.tensors.weights import Weight
from elastic_ir.version import __version__

if TYPE_CHECKING:
    from elastic_ir.tensors.lazy import TensorData

_ALONE = "write the weights alone, with -o NAME.safetensors"
#: Suffixes of files that may hold tensors by name, and no more.
_TENSORS = (*SAFETENSORS.suffixes, *PYTORCH.suffixes, ".bin")


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
        raise OutputError(f"a folder of a training has no place for masks; {_ALONE}")
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
        self.graph, self.source, self.root = graph, source, source.folder.resolve()
        self.rebuilder = Rebuilder(graph, (), source.tensors, graph.info.prefix, names, ordered)
        others = [
            training_folder(source.folder, name)
            for name in networks_in(source.folder)
            if name != source.network
        ]
        #: the folder's further networks, and the files that they lie in
        self.others = {other.network: other.tensors for other in others}
        self.foreign = {part for other in others for part in (other.network, *other.parts)}
        #: the optimizers of the network
        self.mine = optimizers_of(source, self.others, self._load)

    @property
    def followed(self) -> Followed:
        """What has become of the parts."""
        return self.rebuilder.followed

    def write_network(self, room: Path) -> None:
        """Write the network's tensors in the form that they had."""
        source = self.source
        if source.sharded is not None:
            write_followed(followed(self.graph, source.sharded), source.sharded, room / source.network)
            return
        emitted = self.graph.weights.emitted()
        tensors = {self.graph.info.prefix + name: emitted[name] for name, _ in self._written()}
        if not source.parts:
            self._write_tensors(room / source.network, tensors)
            return
        largest = max((source.folder / part).stat().st_size for part in source.parts)
        layout = Layout(CONFIG, source.network.partition(".")[0], "")
        files = sharded(tensors, largest, layout)
        for name, held in files.items():
            self._write_tensors(room / name, held)
        if len(files) > 1:
            (room / layout.index).write_text(index_text(files), encoding="utf-8")

    def _written(self) -> Iterator[tuple[str, Weight]]:
        """The weights that the file has; of what is tied, one name may be there."""
        known = {name.removeprefix(self.graph.info.prefix) for name in self.source.tensors}
        for name, weight in self.graph.weights.items():
            if weight.persistent and (weight.source or weight.origin in known):
                yield name, weight

    def _write_tensors(self, target: Path, tensors: Mapping[str, TensorData]) -> None:
        if SAFETENSORS.names(target):
            from elastic_ir.formats.safetensors import write_safetensors

            write_safetensors(target, tensors, {"format": "pt", **self.source.metadata})
        else:
            from elastic_ir.formats.torch_zip import write_state

            write_state(target, tensors)

    def write_other(self, name: str, room: Path) -> None:
        """Write what lies beside the network: changed where it is about the network, else as it is."""
        path = self.source.folder / name
        if path.is_dir():
            self._write_folder(path, room)
        elif name in self.mine or CUSTOM.fullmatch(name):
            if not self._rebuilt(path, room / name):
                self._copy(path, room)
        elif (
            optimizer_number(name) is not None
            or name in self.foreign
            or not self._write_again(path, room / name)
        ):
            self._copy(path, room)

    def _write_folder(self, path: Path, room: Path) -> None:
        """A folder inside: an optimizer in shards follows, what is of another network or none is copied."""
        source = self.source
        pieces = pieces_in(path)
        if pieces:
            raise EmitError(
                f"{path} holds what DeepSpeed's ranks have saved ({pieces[0].name}), which cannot follow; {_ALONE}"
            )
        if is_dcp(path) and path.name in self.mine:
            if source.sharded is None:
                raise EmitError(f"{path} is in shards, and {source.network} is not; {_ALONE}")
            self._write_sharded(path, room / path.name)
        elif is_dcp(path) and network_number(path.name) == network_number(source.network):
            raise EmitError(
                f"{source.folder} holds its network as {source.network} and as {path.name}; take away the one that "
                f"the training does not go on from, or {_ALONE}"
            )
        else:
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

    def _load(self, name: str) -> Any:
        return load_plain(inside(self.source.folder / name, self.root), _ALONE)

    def _rebuilt(self, path: Path, target: Path) -> bool:
        """Write a file with what is of the network in it at the new depth; whether anything is."""
        import torch

        optimizer = path.name in self.mine
        try:
            found = self._load(path.name)
        except SourceError:
            if optimizer:
                raise
            return False
        now = self.followed
        kept, averages, before = [*now.kept], len(now.averages), len(now.optimizers)
        fresh = self.rebuilder.rebuilt(found, (path.name.partition(".")[0],))
        now.kept[:] = kept
        if (len(now.averages), len(now.optimizers)) == (averages, before):
            if optimizer:
                raise SourceError(
                    f"{path} is no optimizer's state (a dictionary with state and param_groups)"
                )
            return False
        alike = next((name for name, held in self.others.items() if _forms(held) == self._own_forms), None)
        if len(now.averages) > averages and alike is not None:
            raise EmitError(
                f"{path} has an average that may be of {self.source.network} or of {alike}; {_ALONE}"
            )
        torch.save(fresh, target)
        return True

    @property
    def _own_forms(self) -> Mapping[str, tuple[int, ...]]:
        return _forms(self.source.tensors)

    def _write_again(self, path: Path, target: Path) -> bool:
        """Write what holds the network's tensors as well, or leave it out where it cannot follow; whether it does."""
        named = network_number(path.name) == network_number(self.source.network)
        held = self._tensors_of(path)
        if not named and not (held is not None and self._shares(held)):
            return False
        made = self._followed(held) if held is not None and not INDEX.fullmatch(path.name) else None
        if made is None:
            self.followed.left_out.append(path.name)
        else:
            self._write_tensors(target, made)
            self.followed.copies.append(path.name)
        return True

    def _tensors_of(self, path: Path) -> Mapping[str, TensorData] | None:
        """The tensors of a file of nothing else, or of those that an index lists; None for any other."""
        index = INDEX.fullmatch(path.name) is not None
        if not index and path.suffix not in _TENSORS:
            return None
        try:
            return tensors_in(path.parent, self.root, *((None, path.name) if index else (path.name, None)))[0]
        except SourceError:
            return None

    def _followed(self, held: Mapping[str, TensorData]) -> dict[str, TensorData] | None:
        """Tensors of the network's names as it is now; None where they are of other forms, or would be computed."""
        prefix = self.graph.info.prefix
        written = list(self._written())
        if _forms(held) != self._own_forms or any(
            weight.source or isinstance(weight.storage.data, Recipe) for _, weight in written
        ):
            return None
        own = {id(weight.storage): copy.copy(held[prefix + weight.origin]) for _, weight in written}
        return {prefix + name: own[id(weight.storage)] for name, weight in written}

    def _shares(self, names: Iterable[str]) -> bool:
        """Whether any of some names is one of a tensor in the network's layers, or ends with one."""
        own = [name.removeprefix(self.graph.info.prefix) for name in self.source.tensors]
        layers = [layer for stack in Stack.all_of(self.graph) for layer in stack.contents(own)]
        held = {name for layer in layers for name in layer.values()}
        parts = (name.split(".") for name in names)
        return any(".".join(one[at:]) in held for one in parts for at in range(len(one)))

    def _copy(self, path: Path, room: Path) -> None:
        """Copy a file, or all files of a folder, as they are."""
        folder = self.source.folder
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file():
                inside(one, self.root)
                status = one.stat()
                name = one.relative_to(folder).as_posix()
                copy_side_file(SideFile(name, one, status.st_size, stamp_of(status)), room / name)
        self.followed.kept.append(path.name)


def _forms(tensors: Mapping[str, TensorData]) -> Mapping[str, tuple[int, ...]]:
    return {name: data.shape for name, data in tensors.items()}


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
