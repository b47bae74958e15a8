"""One network as the document has it: rows, blocks, weights and the operations of each block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.analysis.kinds import kinds_of
from elastic_ir.analysis.summary import Row, summarise
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Block, Stage
from elastic_ir.pictures.mask_images import MaskImages
from elastic_ir.pictures.origins import Origins, Place, places_of
from elastic_ir.pictures.picture import StagePicture, stage_picture
from elastic_ir.pictures.schema import BlockEntry, NetworkEntry, NodeEntry, RowEntry, WeightEntry
from elastic_ir.pictures.steps import steps_entries
from elastic_ir.pictures.values import Values, values_of
from elastic_ir.tensors.lazy import TensorData, nbytes
from elastic_ir.tensors.weights import Weight, ties_of

if TYPE_CHECKING:
    from elastic_ir.analysis.operations import ForwardCost


class NetworkReader:
    """What is asked of a graph once, while it is made an entry of the document."""

    def __init__(self, graph: Graph, origins: Origins, images: MaskImages, values: bool) -> None:
        self.graph, self.origins, self.images, self.values = graph, origins, images, values
        self.place_of = {name: place for place, name in enumerate(graph.weights)}
        self.graphs: list[list[NodeEntry]] = []
        self._known_graphs: dict[str, int] = {}
        self._known_values: dict[tuple[int, int], Values | None] = {}
        self._held: list[TensorData] = []  # so that no other tensor gets the identity of one that was read

    def entry(self, label: str, blocks_before: Mapping[tuple[int, str], int]) -> NetworkEntry:
        """The whole entry; ``blocks_before`` gives the places of the source's blocks by source and path."""
        graph = self.graph
        counted, why = _operations(graph)
        flops = dict(counted.weights) if counted is not None else {}
        ties = ties_of(graph.weights)
        weights = [self._weight(weight, flops, ties) for weight in graph.weights.values()]
        rows, blocks = self._structure(weights, blocks_before)
        structure = graph.structure_or_none
        notes = [
            structure.note if structure is not None else "nothing repeats in it",
            graph.info.sealed_note,
            why,
        ]
        sums = _sums(graph.weights.values())
        return NetworkEntry(
            name=graph.name, label=label, outline=False, note="; ".join(filter(None, notes)),
            facts=[[name, value] for name, value in graph.origin.facts()],
            depth=structure.depth if structure is not None else None,
            parameters=graph.parameter_count(), bytes=sums[1],
            flops=counted.dense if counted is not None else None, sparse_flops=_sparse(counted, weights),
            prunable=sums[2], zeros=sums[3], rows=rows, blocks=blocks, weights=weights, graphs=self.graphs,
            steps=steps_entries(graph),
        )  # fmt: skip

    # -- weights -------------------------------------------------------------------------------------------------------

    def _weight(self, weight: Weight, flops: Mapping[str, int], ties: Mapping[str, str]) -> WeightEntry:
        origin = self.origins.names.get(weight.name)
        other = f"{self.origins.sources[origin[0]]}/" if origin is not None and origin[0] else ""
        return WeightEntry(
            name=weight.name, shape=list(weight.shape), dtype=weight.dtype, bytes=nbytes(weight.storage.data),
            parameter=weight.is_parameter, prunable=weight.counted,
            zeros=weight.mask.zeros if weight.mask is not None else None, flops=flops.get(weight.name),
            origin=f"{other}{origin[1]}" if origin is not None else None, tied=ties.get(weight.name),
            mask=self.images.place(weight.mask) if weight.mask is not None else None,
            values=self._numbers(weight) if self.values and weight.is_parameter else None,
        )  # fmt: skip

    def _numbers(self, weight: Weight) -> Values | None:
        """Copies of one tensor are read once."""
        key = id(weight.storage.data), id(weight.mask)
        if key not in self._known_values:
            self._held.append(weight.storage.data)
            self._known_values[key] = values_of(weight.storage.data, weight.mask)
        return self._known_values[key]

    # -- rows and blocks -----------------------------------------------------------------------------------------------

    def _structure(
        self, weights: list[WeightEntry], before: Mapping[tuple[int, str], int]
    ) -> tuple[list[RowEntry], list[BlockEntry]]:
        graph = self.graph
        if graph.structure_or_none is None:
            return [self._row(Row("all", "all layers", weights=list(graph.weights)), [], weights)], []
        places = places_of(graph, self.origins)
        blocks: list[BlockEntry] = []
        rows = []
        for row in summarise(graph):
            first = len(blocks)
            if row.stage is not None:
                blocks += self._blocks(row, row.stage, places, before, weights)
            rows.append(self._row(row, list(range(first, len(blocks))), weights))
        return rows, blocks

    def _row(self, row: Row, blocks: list[int], weights: list[WeightEntry]) -> RowEntry:
        listed = [self.place_of[name] for name in row.weights]
        sums = _sums(self.graph.weights[name] for name in row.weights)
        return RowEntry(
            kind=row.kind, name=row.name, type=row.type, output=str(row.activation) if row.activation else None,
            layers=row.layers, parameters=sums[0], bytes=sums[1], flops=_flops_of(listed, weights), prunable=sums[2],
            zeros=sums[3], blocks=blocks, weights=listed,
        )  # fmt: skip

    def _blocks(
        self, row: Row, stage: Stage, places: dict[Block, Place], before: Mapping[tuple[int, str], int],
        weights: list[WeightEntry],
    ) -> list[BlockEntry]:  # fmt: skip
        picture = stage_picture(row, stage, places, self.origins)
        paths = [child.path for block in stage.all_blocks for child in block.children]
        below = weights_below({name: self.graph.weights[name] for name in row.weights}, paths)
        kinds = {place: kind.name for kind in kinds_of(self.graph, stage) for place in kind.blocks}
        found = []
        for block, box in zip(stage.all_blocks, picture.boxes, strict=True):
            own = [weight for child in block.children for weight in below[child.path].values()]
            listed = [self.place_of[weight.name] for weight in own]
            sums, place = _sums(own), places.get(block)
            free = box.index - stage.pinned if not box.kept else None
            found.append(BlockEntry(
                path=block.path, index=box.index, role=box.role,
                unit=free // stage.period if free is not None and stage.period else None,
                kind=kinds.get(box.index, ""), layers=block.layers, parameters=sums[0], bytes=sums[1],
                flops=_flops_of(listed, weights), prunable=sums[2], zeros=sums[3],
                source=before.get((place.source, place.path)) if place is not None else None, source_name=box.source,
                copy=box.copy, graph=self._graph(block), weights=listed,
            ))  # fmt: skip
        return found

    def _graph(self, block: Block) -> int | None:
        if not block.nodes:
            return None
        order = {node: place for place, node in enumerate(block.nodes)}
        nodes = [
            NodeEntry(
                name=_called(node, block), op=node.op,
                shape=list(node.output.type.shape) if node.output.type is not None else None,
                reads=[order.get(value.node, -1) for value in dict.fromkeys(node.operands())],
                weights=[_within(name, block) for name in node.weight_names()],
            )
            for node in block.nodes
        ]  # fmt: skip
        key = repr(nodes)
        if key not in self._known_graphs:
            self._known_graphs[key] = len(self.graphs)
            self.graphs.append(nodes)
        return self._known_graphs[key]


def outline(origins: Origins, after: Graph) -> tuple[NetworkEntry, dict[tuple[int, str], int]]:
    """What the record of a network tells of its source: which blocks there were; and their places."""
    rows: list[RowEntry] = []
    blocks: list[BlockEntry] = []
    found: dict[tuple[int, str], int] = {}
    places = places_of(after, origins)
    for row in summarise(after):
        first = len(blocks)
        if row.stage is not None:
            picture = stage_picture(row, row.stage, places, origins)
            known = _paths(row.stage, picture, places)
            roles = {box.source: box.role for box in picture.boxes if box.kept}
            for index, name in enumerate(picture.before):
                place = known.get(name)
                if place is not None:
                    found[place.source, place.path] = len(blocks)
                path = place.path if place is not None else f"{row.name} block {name}"
                blocks.append(_unknown_block(path, index, name, roles.get(name, "free")))
        rows.append(_unknown_row(row, list(range(first, len(blocks)))))
    entry = NetworkEntry(
        name=origins.sources[0], label=origins.sources[0], outline=True,
        note="known from the record of the result alone; --against gives it whole", facts=[], depth=None, parameters=0,
        bytes=0, flops=None, sparse_flops=None, prunable=0, zeros=0, rows=rows, blocks=blocks, weights=[], graphs=[],
        steps=[],
    )  # fmt: skip
    return entry, found


def _paths(stage: Stage, picture: StagePicture, places: dict[Block, Place]) -> dict[str, Place]:
    return {
        box.source: places[block]
        for block, box in zip(stage.all_blocks, picture.boxes, strict=True)
        if block in places
    }


def _unknown_row(row: Row, blocks: list[int]) -> RowEntry:
    return RowEntry(
        kind=row.kind, name=row.name, type=row.type, output=str(row.activation) if row.activation else None,
        layers=None, parameters=0, bytes=0, flops=None, prunable=0, zeros=0, blocks=blocks, weights=[],
    )  # fmt: skip


def _unknown_block(path: str, index: int, name: str, role: str) -> BlockEntry:
    return BlockEntry(
        path=path, index=index, role=role, unit=None, kind="", layers=None, parameters=0, bytes=0, flops=None,
        prunable=0, zeros=0, source=None, source_name=name, copy=False, graph=None, weights=[],
    )  # fmt: skip


def _within(name: str, block: Block) -> str:
    """A name without the path of the block that it lies in."""
    head = next((child.path for child in block.children if name.startswith(f"{child.path}.")), None)
    return name if head is None else name[len(head) + 1 :]


def _called(node: Node, block: Block) -> str:
    """A module by its path within the block, anything else by its operation."""
    return (
        _within(node.scope, block)
        if node.kind == "module"
        else node.op.removesuffix(".default").rpartition(".")[2]
    )


def _sums(weights: Iterable[Weight]) -> tuple[int, int, int, int]:
    """Parameters, bytes, prunable weights and those of them that are pruned; tied tensors count once."""
    parameters = size = prunable = zeros = 0
    for weight in {id(weight.storage): weight for weight in weights}.values():
        count = prod(weight.shape)
        parameters += count if weight.is_parameter else 0
        size += nbytes(weight.storage.data)
        if weight.counted:
            prunable += count
            zeros += weight.mask.zeros if weight.mask is not None else 0
    return parameters, size, prunable, zeros


def _operations(graph: Graph) -> tuple[ForwardCost | None, str]:
    """The operations of a run, and why they are not known though there are nodes; a report can do without."""
    if not len(graph):
        return None, ""
    from elastic_ir.analysis.cost import operations

    try:
        return operations(graph), ""
    except (EmitError, RuntimeError) as error:
        return None, f"operations were not counted: {error}".splitlines()[0]


def _flops_of(weights: list[int], entries: list[WeightEntry]) -> int | None:
    known = [flops for place in weights if (flops := entries[place]["flops"]) is not None]
    return sum(known) if known else None


def _sparse(counted: ForwardCost | None, weights: list[WeightEntry]) -> int | None:
    """The operations that are left where a layer's shrink with its mask; None where there is no mask."""
    if counted is None or all(weight["zeros"] is None for weight in weights):
        return None
    kept = {weight["name"]: 1 - (weight["zeros"] or 0) / max(prod(weight["shape"]), 1) for weight in weights}
    return round(counted.at({name: kept.get(name, 1.0) for name in counted.weights}))
