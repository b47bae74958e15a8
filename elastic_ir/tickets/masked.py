"""A masked weight: one parameter of a module, found by its plain name, and the mask that it is held under.

It is remembered by the place where it lives (module and attribute) and not as a tensor, because ``module.to()`` and
``load_state_dict(assign=True)`` put other tensors there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elastic_ir.errors import MaskError
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tensors.torch_bridge import mask_to_torch, unwrapped

#: What torch.compile and activation checkpointing put into the names of what they wrap.
_WRAPPER_PARTS = ("_orig_mod", "_checkpoint_wrapped_module")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedWeight:
    """One parameter and its mask; ``name`` is the plain name, without what wrappers add."""

    def __init__(self, name: str, owner: nn.Module, attribute: str, keep: Tensor) -> None:
        self.name = name
        self.owner = owner
        self.attribute = attribute
        self.watched: Tensor | None = None  #: the tensor whose gradients are masked
        self._mask = keep  # 0 and 1, in whatever dtype, device and layout was needed last
        self._handle: RemovableHandle | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that lives at this place now."""
        parameter = self.owner._parameters[self.attribute]
        assert parameter is not None
        return parameter

    @property
    def keep(self) -> Tensor:
        """The mask as a boolean tensor of the weight's shape, True where the weight is kept."""
        mask = self._mask != 0
        return mask[..., 0] if mask.ndim > self.parameter.ndim else mask

    def fitted(self, bits: Tensor, layout: bool = True) -> Tensor:
        """The mask beside ``bits`` (see :func:`bits_of`): its dtype, device and, if wanted, its strides.

        Made anew only when the weight has moved, so that a step costs no copies; equal strides let foreach kernels
        take many tensors at once.
        """
        mask = self._mask
        fits = mask.device == bits.device and mask.dtype == bits.dtype and mask.ndim == bits.ndim
        if not fits or (layout and mask.stride() != bits.stride()):
            if mask.ndim < bits.ndim:  # complex: one mask for both parts
                mask = mask.unsqueeze(-1)
            mask = self._mask = torch.empty_like(bits).copy_(mask)
        return mask

    def watch(self) -> None:
        """Mask the gradients of the parameter that lives here now, if it has any."""
        parameter = self.parameter
        if self.watched is parameter or not parameter.requires_grad:
            return
        self.unwatch()
        self._handle = parameter.register_hook(self._mask_gradient)  # type: ignore[no-untyped-call]
        self.watched = parameter

    def unwatch(self) -> None:
        """Let gradients pass again."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.watched = None

    def _mask_gradient(self, gradient: Tensor) -> Tensor | None:
        if gradient.layout is not torch.strided:
            return None  # an embedding's sparse gradient; the weight itself is masked after the step
        if gradient.requires_grad:  # create_graph=True: the product has to be differentiable
            return gradient.masked_fill(~self.keep.to(gradient.device), 0)
        bits = bits_of(gradient)
        masked = (bits * self.fitted(bits, layout=False)).view(gradient.dtype.to_real())
        return torch.view_as_complex(masked) if gradient.is_complex() else masked


def bits_of(tensor: Tensor) -> Tensor:
    """A tensor's memory as integers of its width (complex: one more dimension, of 2).

    Integers times 0 and 1 mask exactly: a product of floats would leave NaN where a pruned weight has become
    infinite and -0.0 where it was negative, and would cost a second kernel to mend.
    """
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    return plain.view(_INTEGERS[plain.element_size()])


def zero_pruned(pairs: Iterable[tuple[MaskedWeight, Tensor]]) -> None:
    """Set each tensor to +0 in place where its weight's mask is 0; one foreach product per device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for weight, tensor in pairs:
        if tensor.is_meta:
            continue  # has no values, and a mask moved there would lose its own
        bits = bits_of(tensor)
        tensors, masks = groups.setdefault((bits.device, bits.dtype), ([], []))
        tensors.append(bits)
        masks.append(weight.fitted(bits))
    for tensors, masks in groups.values():
        torch._foreach_mul_(tensors, masks)


def places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Plain name, owner, attribute and parameter of all parameters; tied ones under each of their names."""
    for path, owner in unwrapped(module).named_modules(remove_duplicate=False):
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                yield plain_name(f"{path}.{attribute}" if path else attribute), owner, attribute, parameter


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and checkpointing put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def masked_weights(module: nn.Module, masks: Mapping[str, Any]) -> list[MaskedWeight]:
    """Pair masks with a module's parameters; tied parameters come once.

    Raises MaskError that names the weight: unknown name, wrong shape, values other than 0 and 1, no shape yet, or two
    masks that disagree on one tied parameter.
    """
    known = {name: (owner, attribute, parameter) for name, owner, attribute, parameter in places(module)}
    found: dict[int, MaskedWeight] = {}
    for given_name, given in masks.items():
        name = plain_name(given_name)
        while name not in known and name.startswith("module."):  # saved under DDP, used without it
            name = name.removeprefix("module.")
        if name not in known:
            raise MaskError(_unknown(given_name, name, known))
        owner, attribute, parameter = known[name]
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise MaskError(f"{name!r} has no shape yet; run the network once before it is masked")
        keep = _checked(given_name, given, parameter)
        twin = found.setdefault(id(parameter), MaskedWeight(name, owner, attribute, keep))
        if twin.name != name and not torch.equal(twin.keep, keep.to(twin.keep.device)):
            raise MaskError(
                f"{twin.name!r} and {name!r} are one tied weight, but their masks differ; give one mask"
            )
    return list(found.values())


def _checked(name: str, given: Any, parameter: Tensor) -> Tensor:
    """A mask as a boolean tensor of its own storage, on the weight's device where that has values."""
    mask = Mask.of(given if isinstance(given, Mask | Tensor) else np.asarray(given), name)
    if mask.shape != parameter.shape:
        raise MaskError(
            f"the mask of {name!r} has shape {list(mask.shape)}, its weight {list(parameter.shape)}"
        )
    keep = mask_to_torch(mask, torch.bool)
    return keep if parameter.is_meta else keep.to(parameter.device)


def _unknown(given_name: str, name: str, known: Mapping[str, object]) -> str:
    if f"{name}_orig" in known:
        return f"the weight of the mask {given_name!r} is under torch.nn.utils.prune; call prune.remove on it first"
    role = name.rpartition(".")[2]
    examples = [other for other in known if other.rpartition(".")[2] == role][:3]
    has = f"it has, for example, {', '.join(examples)}" if examples else f"it has none that ends in {role!r}"
    return f"the mask {given_name!r} fits no weight of the network ({has})"
