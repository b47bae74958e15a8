"""Between lazy tensors and torch tensors; torch is imported by the functions, never by this module."""

from __future__ import annotations

import copy
import copyreg
import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import Mask, MaskedData, ShapeOnly, TensorData, item_size

if TYPE_CHECKING:
    import torch


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one of torch's sparse layouts: COO, CSR, CSC, BSR, BSC."""
    return str(tensor.layout).startswith("torch.sparse_")


@dataclass(frozen=True, eq=False)
class TorchData:
    """A lazy tensor over a torch tensor that somebody else owns; it is read, never changed."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return dtype_name(self.tensor.dtype)

    @property
    def dense(self) -> bool:
        """Whether it has its values in one piece of memory; a sparse one has only those that are not zero."""
        return str(self.tensor.layout) == "torch.strided"

    def chunks(self) -> Iterator[memoryview]:
        import torch

        if self.tensor.is_meta:
            raise EmitError(
                f"a tensor of shape {list(self.shape)} was read on the meta device and has no values; "
                "load the model with its weights to emit it"
            )
        if not self.dense:
            raise EmitError(
                f"a tensor of shape {list(self.shape)} is sparse ({self.tensor.layout}), and no file holds it as it "
                "is; make it dense (to_dense()), or leave it out of the state dict (persistent=False)"
            )
        flat = self.tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an ndarray is a buffer


def lazy_of(tensor: torch.Tensor) -> TensorData:
    """A tensor as a lazy one; on the meta device there is only its shape."""
    return ShapeOnly(tuple(tensor.shape), dtype_name(tensor.dtype)) if tensor.is_meta else TorchData(tensor)


def to_torch(data: TensorData) -> torch.Tensor:
    """Evaluate a lazy tensor into a torch tensor of its own storage (at most one tensor more in memory)."""
    import torch

    if isinstance(data, MaskedData):
        tensor = to_torch(data.data)
        # torch fills no eight-bit float and no uint16 to uint64; their zero, too, is all bits zero
        plain = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.itemsize)
        view = tensor.view(plain) if plain is not None and not tensor.is_complex() else tensor
        view.masked_fill_(~mask_to_torch(data.mask, torch.bool).to(tensor.device), 0)
        return tensor
    if isinstance(data, TorchData):
        return data.tensor.detach().clone(memory_format=torch.preserve_format if data.dense else None)
    buffer = bytearray(prod(data.shape) * item_size(data.dtype))
    done = 0
    for chunk in data.chunks():
        buffer[done : done + len(chunk)] = chunk
        done += len(chunk)
    dtype = getattr(torch, data.dtype)
    if not buffer:
        return torch.empty(data.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(data.shape)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The network inside DataParallel, DistributedDataParallel and ``torch.compile``."""
    import torch

    while True:
        inner = module._modules.get("_orig_mod")
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner


def results_held(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The tensors with a history that modules keep as attributes, in lists and dictionaries too: what a run computed.

    ``copy.deepcopy`` refuses them (attention maps that are kept to be looked at, RAFT's pyramid).
    """
    seen: set[int] = set()
    for part in module.modules():
        waiting: list[Any] = list(vars(part).values())
        while waiting:
            item = waiting.pop()
            if type(item) in (dict, list, tuple):
                if id(item) not in seen:
                    seen.add(id(item))
                    waiting += item.values() if type(item) is dict else item
            elif getattr(item, "grad_fn", None) is not None:
                yield item


#: What is the same in a copy; ``deepcopy`` refuses the last two.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, staticmethod, classmethod})
#: What a class may have of its own that ``deepcopy`` goes by.
_PLAINLY = (
    "__deepcopy__", "__reduce_ex__", "__reduce__", "__new__", "__getnewargs_ex__", "__getnewargs__"
)  # fmt: skip


def copy_module(module: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """``copy.deepcopy`` of a module with a memo, several times as fast.

    Tensors with a history, which ``deepcopy`` refuses, are copied without it (see :func:`results_held`). Of a module in
    a class that says nothing of its copying all tables and plain attributes are copied here, which is most of what
    ``deepcopy`` asks one by one how to do; anything else is left to it.
    """
    import torch

    def copied(value: Any) -> Any:
        kind: Any = type(value)
        if kind in _ATOMS:
            return value
        made = memo.get(id(value))
        if made is not None:
            return made
        if kind is dict or (kind is OrderedDict and not vars(value)):
            made = memo[id(value)] = kind()
            for key, part in value.items():
                made[copied(key)] = copied(part)
            return made
        if kind is list:
            made = memo[id(value)] = []
            made += map(copied, value)
            return made
        if kind is tuple:
            made = memo[id(value)] = tuple(map(copied, value))
            return made
        if isinstance(value, torch.nn.Module) and _is_copied_plainly(kind):
            source: Any = value
            made = memo[id(value)] = object.__new__(kind)
            made.__setstate__({name: copied(part) for name, part in source.__getstate__().items()})
            return made
        if getattr(value, "grad_fn", None) is not None:
            made = memo[id(value)] = value.detach().clone()
            return made
        return copy.deepcopy(value, memo)

    result: torch.nn.Module = copied(module)
    return result


@functools.cache
def _is_copied_plainly(kind: type) -> bool:
    """Whether ``deepcopy`` makes an empty object of a class and sets copies of its attributes, as it usually does."""
    usual: Any = object
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    own = any(getattr(kind, name, None) is not getattr(usual, name, None) for name in _PLAINLY)
    return not slots and not own and kind not in copyreg.dispatch_table


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of the first parameter or buffer, or the CPU."""
    import torch

    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def mask_to_torch(mask: Mask, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A mask as a tensor, in the dtype its owner gave it unless another is wanted."""
    import torch

    tensor = torch.from_numpy(mask.array())
    return tensor.to(dtype or getattr(torch, mask.dtype, torch.bool))
