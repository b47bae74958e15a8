"""Ticket files over random tensors and random networks: what was written comes back, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elastic_ir as eir
from elastic_ir.formats.safetensors import DTYPES
from elastic_ir.formats.ticket import read_ticket, ticket_shapes, write_ticket
from elastic_ir.plans.plan import Order
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, Mask
from elastic_ir.tensors.weights import Storage
from tests.emit.nets import same_tensors
from tests.properties.test_invariants import Recipe, orders, recipes, source


@contextmanager
def a_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "a.ticket"


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    """Any dtype, shape, bytes and mask."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = prod(shape)
    length = size * ITEM_SIZES[dtype]
    data = InlineData(shape, dtype, draw(st.binary(min_size=length, max_size=length)))
    bits = draw(
        st.none()
        | st.lists(st.booleans(), min_size=size, max_size=size)
        | st.sampled_from([[False] * size, [True] * size])
    )
    if bits is None:
        return Storage(data)
    array = np.array(bits, np.bool_).reshape(shape)
    return Storage(data, Mask.from_array(array, dtype=draw(st.sampled_from(sorted(ITEM_SIZES)))))


names = st.text(min_size=1, max_size=12).filter(
    lambda name: not name.endswith((":mask", ":kept")) and name != "__metadata__"
)


@given(st.dictionaries(names, storages(), max_size=5), st.none() | st.text())
@settings(max_examples=150)
def test_any_tensors_under_any_names(weights: dict[str, Storage], graph: str | None) -> None:
    with a_file() as path:
        write_ticket(path, weights, graph)
        read = read_ticket(path)
        assert list(read.tensors) == list(weights)
        assert ticket_shapes(path) == {name: tensor.shape for name, tensor in read.tensors.items()}
        for name, storage in weights.items():
            tensor = read.tensors[name]
            assert (tensor.shape, tensor.dtype) == (storage.data.shape, storage.data.dtype)
            assert b"".join(tensor.chunks()) == b"".join(storage.emitted().chunks())
        assert read.read_masks() == {n: s.mask for n, s in weights.items() if s.mask is not None}
        assert read.graph == graph


@given(recipes, st.integers(0, 3), orders)
@settings(max_examples=15)
@pytest.mark.slow
def test_stretched_from_a_ticket_and_squeezed_back(recipe: Recipe, more: int, order: Order) -> None:
    """Invariant 6 through two files: weights, masks and ties."""
    model, masks = source(recipe)
    graph = eir.trace(model, (recipe.example(),), masks=masks)
    with a_file() as path:
        eir.save(graph, path)
        read = eir.load(path, trust=["tests"])
        same_tensors(read.state_dict(), graph.state_dict())
        same_tensors(read.masks(), graph.masks())
        deeper = eir.stretch(read, to_stages=[count + more for count in recipe.counts], order=order)
        eir.save(deeper, path.with_name("deep.ticket"))
        again = eir.load(path.with_name("deep.ticket"), trust=["tests"])
        same_tensors(again.state_dict(), deeper.state_dict())
        back = eir.squeeze(again, to_stages=recipe.counts, drop="tail" if order == "append" else "even")
        same_tensors(back.state_dict(), graph.state_dict())
        same_tensors(back.masks(), graph.masks())
        for name, weight in back.weights.items():  # ties too
            ties = [other for other, w in graph.weights.items() if w.storage is graph.weights[name].storage]
            assert [other for other, w in back.weights.items() if w.storage is weight.storage] == ties
