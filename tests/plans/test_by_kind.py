"""Layers of several kinds that a network builds by their numbers: each kind in the places that there are for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import ShapeOnly

KINDS = {"d": ("up", "down"), "m": ("up", "down", "gate"), "r": ("up", "down", "mixer")}


def network(kinds: str, places: str) -> eir.Graph:
    """A network of layers of some kinds, whose source has others in the places of a deeper or shallower one."""
    shapes = {f"layers.{at}.{name}.weight": (4, 4) for at, kind in enumerate(kinds) for name in KINDS[kind]}
    graph = graph_of_tensors("bare", {name: ShapeOnly(shape, "float32") for name, shape in shapes.items()})

    def fitting(graph: eir.Graph, plan: Sequence[Sequence[int]]) -> Mapping[str, Sequence[frozenset[int]]]:
        fits = {kind: frozenset(at for at, one in enumerate(kinds) if one == kind) for kind in places}
        return {"layers": [fits[kind] for kind in places]} if places else {}

    graph.origin = Origin(fitting=fitting)
    return graph


def order(graph: eir.Graph) -> list[int]:
    return [int(child.origin.rpartition(".")[2]) for child in graph.stages[0].container.children]


@pytest.mark.parametrize(
    ("kinds", "places", "made"),
    [
        ("ddmm", "ddmmm", [0, 1, 2, 3, 2]),  # the first two are dense, whatever their number
        ("ddmm", "dddddmm", [0, 1, 0, 1, 0, 2, 3]),
        ("rddr", "rdddr", [0, 1, 2, 1, 3]),  # the first and the last are others
        ("ddmm", "", [0, 1, 2, 3, 0]),  # which the configuration explains
        ("ddmm", "mmmmm", [0, 1, 2, 3, 0]),  # layers would be lost
        ("ddmm", "dmmmm", [0, 1, 2, 3, 0]),
        ("ddmm", "ddmmr", [0, 1, 2, 3, 0]),  # a kind that the source has not
    ],
)
def test_more_layers(kinds: str, places: str, made: list[int]) -> None:
    graph = network(kinds, places)
    assert order(eir.stretch(graph, to_units=len(places) or 5)) == made


def test_what_is_chosen_is_not_changed() -> None:
    graph = network("ddmm", "ddmmm")
    assert order(eir.stretch(graph, to_units=5, replicate=[0])) == [0, 1, 2, 3, 0]
    assert order(eir.stretch(graph, plan="0,0,1,2,3")) == [0, 0, 1, 2, 3]
    assert order(eir.stretch(graph, to_units=5, order="interpolate")) == [0, 1, 2, 2, 3]


def test_fewer_layers() -> None:
    assert order(eir.squeeze(network("rddr", "rdr"), to_units=3)) == [0, 1, 3]
    assert order(eir.squeeze(network("ddmm", "dmm"), to_units=3)) == [0, 2, 3]
    assert order(eir.squeeze(network("ddmm", "ddd"), to_units=3)) == [0, 1, 2]
