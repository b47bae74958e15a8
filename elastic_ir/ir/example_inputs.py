"""Example inputs as plain data and back: what a network takes, so that one read from a file can be run again.

Tensors in any nest of tuples, lists and dictionaries, beside plain values. Whole numbers and bools keep their values,
because they are what forwards go by (token ids, masks, lengths), and so do a few floats; of larger floating tensors
the shape is kept, and noise stands for them.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import SourceError
from elastic_ir.safety.limits import INPUT_NUMBERS

if TYPE_CHECKING:
    import torch

KEPT_FLOATS = 64  #: elements of a floating tensor whose values are kept
KEPT_BYTES = 1 << 24  #: of any tensor whose values are kept


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword example inputs of a module, and where they came from."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guessed: bool = False  #: whether even their shapes are a guess
    noise: bool = False  #: whether the shapes are known and the values are made up

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on a device."""
        args, kwargs = map_tensors((self.args, dict(self.kwargs)), lambda tensor: tensor.to(device))
        return Inputs(args, kwargs, self.guessed, self.noise)


def map_tensors(item: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A nest of inputs with each tensor in it changed."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, change, item)


def tensors_in(item: Any) -> list[torch.Tensor]:
    """The tensors in a nest of inputs or outputs, in order: of tuples, lists, mappings and what torch knows as such."""
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(dict(item) if isinstance(item, Mapping) else item)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def describe_input(item: Any) -> Any:
    """One example input as JSON-ready data; ``{"opaque": class}`` for what is neither tensor nor plain data."""
    import torch

    if isinstance(item, torch.Tensor):
        return {"tensor": describe_tensor(item)}
    if item is None or type(item) in (bool, int, str):
        return item
    if type(item) is float:
        return {"float": repr(item)}
    if isinstance(item, (torch.dtype, torch.device)):
        return {"symbol": str(item) if isinstance(item, torch.dtype) else f"device.{item}"}
    if type(item) in (tuple, torch.Size):
        return {"tuple": [describe_input(part) for part in item]}
    if type(item) is list:
        return [describe_input(part) for part in item]
    if isinstance(item, Mapping) and all(type(key) in (str, int) for key in item):
        return {"dict": [[key, describe_input(part)] for key, part in item.items()]}
    return {"opaque": f"{type(item).__module__}:{type(item).__qualname__}"}


def describe_tensor(tensor: torch.Tensor, *, whole: bool = False) -> list[Any]:
    """Shape, dtype and, where they are kept, the values, deflated, in base64."""
    import torch

    record: list[Any] = [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
    exact = not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() <= KEPT_FLOATS or whole
    if exact and not tensor.is_meta and tensor.numel() * tensor.itemsize <= KEPT_BYTES:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        record.append(base64.b64encode(zlib.compress(raw)).decode())
    return record


def read_input(record: Any) -> tuple[Any, bool]:
    """The input that was described, and whether any of its values are made up. Raises SourceError."""
    made_up, numbers = False, 0

    def one(item: Any) -> Any:
        nonlocal made_up, numbers
        if isinstance(item, list):
            return [one(part) for part in item]
        if not isinstance(item, dict):
            return item
        ((kind, content),) = item.items()
        if kind == "tensor":
            tensor, whole = read_tensor(content)
            made_up = made_up or not whole
            numbers += tensor.numel()
            if numbers > INPUT_NUMBERS:
                raise SourceError("its example inputs are together too large for examples")
            return tensor
        if kind == "float":
            return float(content)
        if kind == "symbol":
            from elastic_ir.ir.functions import resolve_symbol

            return resolve_symbol(content)
        if kind == "tuple":
            return tuple(one(part) for part in content)
        if kind == "dict":
            return {key: one(part) for key, part in content}
        if kind == "opaque":
            raise SourceError(f"one of its example inputs is a {content}, which no file can hold")
        raise SourceError(f"its example inputs hold an unknown kind of value, {kind!r}")

    return one(record), made_up


def read_tensor(record: Any) -> tuple[torch.Tensor, bool]:
    """A described tensor, and whether it has the values that it had; noise, or ones, stand for what was not kept."""
    import torch

    shape, dtype = [int(extent) for extent in record[0]], getattr(torch, str(record[1]), None)
    if not isinstance(dtype, torch.dtype) or min(shape, default=0) < 0:
        raise SourceError(f"its example inputs name a tensor of {record[:2]}, which does not exist")
    if math.prod(shape) > INPUT_NUMBERS:
        raise SourceError(
            f"its example inputs name a tensor of shape {shape}, which is too large for an example"
        )
    if len(record) > 2:
        wanted = math.prod(shape) * dtype.itemsize
        try:
            stream = zlib.decompressobj()
            raw = stream.decompress(base64.b64decode(record[2]), wanted + 1)
        except (binascii.Error, zlib.error) as error:
            raise SourceError(f"its example inputs are damaged ({error})") from error
        if len(raw) != wanted:
            raise SourceError(
                "its example inputs are damaged: a tensor has not the bytes that its shape asks for"
            )
        if not raw:
            return torch.empty(shape, dtype=dtype), True
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape), True
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), False
    return torch.ones(shape, dtype=dtype), False
