"""Masked weights of every dtype come out as tensors; modules are copied as ``copy.deepcopy`` copies them."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from elastic_ir.formats.safetensors import DTYPES
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, MaskedData
from elastic_ir.tensors.torch_bridge import TorchData, copy_module, to_torch


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


class Own(nn.Module):
    """Says itself how it is copied."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = Own()
        made.copies = self.copies + 1
        return made


class Holding(nn.Module):
    """Attributes that are shared, nested, cyclic, empty, of other classes, and a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.LSTM(2, 2, 2), nn.MultiheadAttention(4, 2), Own()])
        self.twice, self.parameters_too = self.layers[0], nn.ParameterList([nn.Parameter(torch.ones(2))])
        self.settings = types.SimpleNamespace(size=(1, [2]), owner=self)
        self.shared = [self.settings, self.settings, {"a": {1, 2}, (3, 4): OrderedDict(b=[])}, ()]
        self.act, self.dtype, self.shape = functional.relu, torch.bfloat16, torch.Size([1, 2])
        self.register_buffer("count", torch.tensor(3), persistent=False)
        self.register_forward_hook(note)


def note(*_: object) -> None:
    """A hook."""


def test_a_module_is_copied_as_deepcopy_copies_it() -> None:
    module: Any = Holding().eval()
    tensors: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    copies: list[Any] = [copy.deepcopy(module, dict(tensors)), copy_module(module, dict(tensors))]
    for made in copies:
        assert made is not module and made.twice is made.layers[0] is not module.layers[0]
        assert made.settings is not module.settings and made.settings.owner is made
        assert made.shared[0] is made.shared[1] is made.settings
        assert made.layers[3].copies == 1
        assert made.count is module.count and made.layers[0].weight is module.layers[0].weight
        assert not made.training and not made.layers[1].training
    plain, quick = copies
    assert repr(plain) == repr(quick)
    assert [path for path, _ in plain.named_modules()] == [path for path, _ in quick.named_modules()]
    for one, other in zip(plain.modules(), quick.modules(), strict=True):
        assert type(one) is type(other)
        assert list(vars(one)) == list(vars(other))
        assert list(map(type, vars(one).values())) == list(map(type, vars(other).values()))
    assert quick.shared[2:] == module.shared[2:] and quick.shared[2] is not module.shared[2]
    assert (quick.act, quick.dtype, quick.shape) == (module.act, module.dtype, module.shape)
    assert list(quick._forward_hooks.values()) == [note]
    assert quick._forward_hooks is not module._forward_hooks
    whole: Any = copy_module(module, {})
    assert torch.equal(whole.count, module.count) and whole.count is not module.count
    assert whole.layers[1]._flat_weights[0] is whole.layers[1].weight_ih_l0
