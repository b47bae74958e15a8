"""Tensors of which some entries are taken, as numpy takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import GraphInfo
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.arrays import as_array
from elastic_ir.tensors.gathered import ByLayer, Gathered, Gathering
from elastic_ir.tensors.lazy import InlineData, Mask
from elastic_ir.tensors.recipes import carried
from elastic_ir.tensors.weights import Storage, Weight


class Pieces(InlineData):
    """A tensor that comes in pieces of three elements, as one comes from a file in pieces of megabytes."""

    def chunks(self) -> Iterator[memoryview]:
        step = 3 * (len(self.raw) // max(int(np.prod(self.shape)), 1) or 1)
        for at in range(0, len(self.raw), step):
            yield memoryview(self.raw[at : at + step])


def tensor(array: Any) -> Pieces:
    return Pieces(tuple(array.shape), str(array.dtype), array.tobytes())


@given(
    axis=st.integers(0, 2), size=st.integers(1, 3), count=st.integers(1, 5), data=st.data(),
    dtype=st.sampled_from(["float32", "int8"]),
)  # fmt: skip
def test_entries_are_those_that_numpy_takes(
    axis: int, size: int, count: int, data: st.DataObject, dtype: str
) -> None:
    shape = [2, 3, 2]
    shape[axis] = size * count
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    entries = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))
    how = Gathering(axis, tuple(entries), size)
    made = Gathered(tensor(array), how)
    wanted = np.take(array, [size * entry + at for entry in entries for at in range(size)], axis)
    assert how.fits(array.shape) and made.shape == wanted.shape
    assert (as_array(made) == wanted).all()
    moment = carried(made, torch.from_numpy(array.copy()))
    assert moment is not None and (moment.numpy() == wanted).all()
    mask = array % 2 == 0
    assert (how.mask(Mask.from_array(mask)).array() == (wanted % 2 == 0)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_the_weights_of_copies_add_up_to_their_sources(dtype: str) -> None:
    values = torch.tensor([0.3, -1.0, 2.0, 0.0]).to(getattr(torch, dtype))
    raw = values.view(torch.uint8).numpy().tobytes()
    entries = (0, 1, 2, 3, 2, 3, 2)
    made = Gathered(InlineData((4,), dtype, raw), Gathering(0, entries, shared=True))
    new = (
        torch.frombuffer(bytearray(b"".join(made.chunks())), dtype=getattr(torch, dtype)).double().softmax(0)
    )
    summed = torch.zeros(4, dtype=torch.float64).index_add(0, torch.tensor(entries), new)
    assert torch.allclose(summed, values.double().softmax(0), atol=0.01 if dtype == "bfloat16" else 1e-3)
    assert made.dtype == dtype and len(set(new[[2, 4, 6]].tolist())) == 1


def test_a_file_is_read_row_by_row() -> None:
    """However large it is: a row is in memory, and not the tensor."""
    array = np.arange(1 << 20, dtype=np.float32).reshape(-1, 8)
    made = Gathered(InlineData(array.shape, "float32", array.tobytes()), Gathering(1, (1, 0, 1), 4))
    pieces = [len(piece) for piece in made.chunks()]
    assert sum(pieces) == array.nbytes * 3 // 2 and max(pieces) <= 3 << 19
    assert (as_array(made) == np.concatenate([array[:, 4:], array], 1)).all()


@pytest.mark.parametrize(
    ("more", "order", "entries"),
    [
        (0, [0, 1, 2, 1, 2], [0, 1, 2, 1, 2]),
        (1, [0, 1, 2, 1, 2], [0, 1, 2, 3, 2, 3]),  # what goes into the first layer stays the first
        (1, [0, 2], [0, 1, 3]),
        (-1, [0, 1, 2, 1, 2], [0, 1, 1, 1]),  # behind the last layer there was nothing
        (-1, [0, 2], [0]),
    ],
)
def test_entries_of_a_plan(more: int, order: list[int], entries: list[int]) -> None:
    how = ByLayer("layers.", 0, more=more).gathering(order, 3)
    assert how == Gathering(0, tuple(entries))
    assert how.follows(order, 3) and not how.follows([2, 1, 0], 3)


def test_what_lacks_entries_does_not_fit() -> None:
    assert not Gathering(0, (0, 4)).fits((4,))
    assert not Gathering(1, (0,)).fits((4,))
    assert not Gathering(0, (0,), 3).fits((4,))
    assert not Gathering(0, (0,), shared=True).fits((4, 2))


@pytest.mark.parametrize(
    "data",
    [
        None, {}, {"axis": 0, "entries": [0], "size": 0, "shared": False},
        {"axis": 0, "entries": 3, "size": 1, "shared": False}, {"axis": -1, "entries": [0], "size": 1, "shared": False},
        {"axis": 0, "entries": [True], "size": 1, "shared": False}, {"axis": 0, "entries": [0], "size": 1, "shared": 1},
    ],
)  # fmt: skip
def test_what_is_no_gathering(data: Any) -> None:
    with pytest.raises(ValueError, match="does not say which entries of a tensor are taken"):
        Gathering.of(data)


def test_a_gathering_there_and_back() -> None:
    how = Gathering(1, (0, 2, 2), 8, shared=True)
    assert Gathering.of(how.data()) == how


def test_the_rewriter_starts_from_the_source() -> None:
    """What is gathered again has entries of the source, and so has its mask; all of them is what there was."""
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    mask = Mask.from_array(array > 2)
    graph = Graph("net", GraphInfo())
    graph.weights["mix"] = Weight("mix", Storage(tensor(array), mask), "mix")
    rewriter = Rewriter(graph)
    for entries in [(0, 1, 2, 1), (2, 1), (1, 2, 2)]:
        rewriter.gather("mix", Gathering(0, entries))
        storage = graph.weights["mix"].storage
        assert (as_array(storage.data) == array[list(entries)]).all() and storage.mask is not None
        assert (storage.mask.array() == (array > 2)[list(entries)]).all()
    with pytest.raises(VerifyError, match="the mask of 'mix' has no entry 0 any more"):
        rewriter.gather("mix", None)
    with pytest.raises(VerifyError, match=r"'mix' is \[3, 2\], and does not have the entries"):
        rewriter.gather("mix", Gathering(0, (3,)))
    graph.weights["mix"].storage.mask = None
    rewriter.gather("mix", None)
    assert graph.weights["mix"].storage.data == tensor(array)


def test_copies_are_counted_over_the_whole_plan() -> None:
    """Stretched twice, a layer that occurs four times has a quarter of its weight in each place."""
    values = np.zeros(3, np.float64)
    graph = Graph("net", GraphInfo())
    graph.weights["mix"] = Weight("mix", Storage(tensor(values)), "mix")
    rewriter = Rewriter(graph)
    for order in ([0, 1, 1], [0, 1, 1, 1, 1]):
        rewriter.gather("mix", ByLayer("layers.", 0, more=1, softmaxed=True).gathering(order, 2))
    made = as_array(graph.weights["mix"].storage.data)
    often = Counter(made.tolist())
    assert often == {0.0: 2, -np.log(4.0): 4}
