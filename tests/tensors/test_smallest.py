"""The smallest of many streamed tensors: exact counts, ties by position, what is pruned stays pruned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from elastic_ir.errors import MaskError
from elastic_ir.tensors.lazy import Mask, OfTensor, item_size
from elastic_ir.tensors.smallest import Ranked, smallest_pruned
from elastic_ir.tensors.torch_bridge import TorchData


class Pieces(OfTensor):
    """A tensor that comes in pieces of seven elements, none of them a whole byte of mask."""

    def chunks(self) -> Iterator[memoryview]:
        step = 7 * item_size(self.dtype)
        for whole in self.data.chunks():
            for begin in range(0, len(whole), step):
                yield whole[begin : begin + step]


def sorted_out(values: list[np.ndarray], count: int) -> np.ndarray:
    """The same by a stable sort of everything."""
    sizes = np.concatenate([value.reshape(-1) for value in values])
    keep = np.ones(len(sizes), bool)
    keep[np.argsort(sizes, kind="stable")[:count]] = False
    return keep


@pytest.mark.parametrize(
    "dtypes", [("float32",), ("float16", "bfloat16"), ("float32", "float64"), ("float8_e4m3fn",)]
)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.37, 0.5, 0.999, 1.0])
def test_as_a_stable_sort_of_all(dtypes: tuple[str, ...], share: float) -> None:
    torch.manual_seed(0)
    tensors = [
        (torch.randn(size) * 10.0 ** torch.randint(-3, 3, size)).to(getattr(torch, dtype))
        for dtype in dtypes
        for size in ((9, 13), (1, 31), (0, 4), (5, 5))
    ]
    ranked = [Ranked(str(place), Pieces(TorchData(tensor))) for place, tensor in enumerate(tensors)]
    total = sum(tensor.numel() for tensor in tensors)
    count = round(share * total)
    masks = smallest_pruned(ranked, count)
    found = np.concatenate([mask.array().reshape(-1) for mask in masks.values()])
    expected = sorted_out([tensor.double().abs().numpy() for tensor in tensors], count)
    assert np.array_equal(found, expected)
    assert [mask.shape for mask in masks.values()] == [tuple(tensor.shape) for tensor in tensors]


def test_signs_of_zero_and_numbers_that_differ_in_the_last_bit() -> None:
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    values = torch.tensor([above, 1.0, -0.0, 0.0, -1.0, -torch.inf, torch.inf, 1e-45])
    kept = {
        count: smallest_pruned([Ranked("w", TorchData(values))], count)["w"].array() for count in range(9)
    }
    order = [int(np.flatnonzero(kept[count] & ~kept[count + 1])[0]) for count in range(8)]
    assert order == [2, 3, 7, 1, 4, 0, 5, 6]


def test_what_is_pruned_counts_and_stays() -> None:
    values = torch.tensor([5.0, 4.0, 3.0, 2.0])
    held = Mask.from_array(np.array([0.0, 1.0, 1.0, 1.0]))
    mask = smallest_pruned([Ranked("w", TorchData(values), held)], 2)["w"]
    assert mask.array().tolist() == [False, True, True, False]
    assert mask.dtype == "float64"  # as its owner has it


def test_refusals() -> None:
    nan = Ranked("bad", TorchData(torch.tensor([1.0, torch.nan])))
    with pytest.raises(MaskError, match="'bad' holds NaN, which has no magnitude"):
        smallest_pruned([Ranked("good", TorchData(torch.ones(3))), nan], 2)
    with pytest.raises(MaskError, match="3 of 2 weights cannot be pruned"):
        smallest_pruned([Ranked("w", TorchData(torch.ones(2)))], 3)
    held = Ranked("w", TorchData(torch.ones(2)), Mask.from_array(np.zeros(2)))
    with pytest.raises(MaskError, match="1 of 2 weights, of which 2 are pruned already, cannot be pruned"):
        smallest_pruned([held], 1)
