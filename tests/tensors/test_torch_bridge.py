"""Masked weights of every dtype come out as tensors, also those for which torch has no filling."""

from __future__ import annotations

import pytest
import torch

from elastic_ir.formats.safetensors import DTYPES
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, MaskedData
from elastic_ir.tensors.torch_bridge import TorchData, to_torch


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_masked_tensors_of_every_dtype(dtype: str) -> None:
    item = ITEM_SIZES[dtype]
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (6 * item,), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, dtype)).reshape(2, 3)
    keep = torch.tensor([[1, 0, 1], [0, 0, 1]])
    made = to_torch(MaskedData(TorchData(tensor), Mask.from_array(keep.numpy())))
    assert made.dtype == tensor.dtype
    wanted = raw.reshape(6, item) * keep.reshape(6, 1).to(torch.uint8)
    assert torch.equal(made.reshape(-1).view(torch.uint8), wanted.reshape(-1))


def test_a_scalar_and_an_empty_one() -> None:
    for shape in ((), (0, 3)):
        mask = Mask.from_array(torch.zeros(shape).numpy())
        for dtype in DTYPES:
            made = to_torch(MaskedData(TorchData(torch.ones(shape).to(getattr(torch, dtype))), mask))
            assert made.shape == torch.Size(shape)
            assert not made.reshape(-1).view(torch.uint8).any()
