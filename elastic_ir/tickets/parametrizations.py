"""Which parameters of a live module are the weights of its layers, where a parametrization computes the weight too.

Weight norm stores a length and a direction in place of the weight, spectral norm the weight before it is divided, and
``torch.nn.utils.parametrize`` whatever a class of the user's starts from. A mask belongs to the stored tensor whose
zeros are the effective weight's: the direction, the dividend, and what a parametrization of the user's lets keep its
zeros, which is tried.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    remove_parametrizations,
    type_before_parametrizations,
)

from elastic_ir.tensors.torch_bridge import results_held
from elastic_ir.tensors.weights import holds_table, is_prunable

Module = TypeVar("Module", bound=nn.Module)

#: What the hooks of torch.nn.utils call the tensor that a weight is computed from, by the hook's class.
_HOOKED = {"WeightNorm": "_v", "SpectralNorm": "_orig"}
#: torch's own parametrizations, by their class, and the function that registers one.
_FUNCTIONS = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
_HOOKS = "torch.nn.utils"
_CLASSES = "torch.nn.utils.parametrize"  #: where the classes of parametrized modules are made
_PATH = "parametrizations"  #: the attribute that a module keeps its parametrizations in


class LayerWeight(NamedTuple):
    """A weight of a module that is a layer, or what is stored in its place."""

    name: str  #: from the module
    owner: nn.Module  #: what holds the parameter: the module, or a part of it
    attribute: str  #: what it is called there
    prunable: bool


def layer_weights(module: nn.Module) -> Iterator[LayerWeight]:
    """The weights by which a module is a layer; nothing of the modules in it."""
    if isinstance(module, ParametrizationList):
        return  # seen from the module that has it
    hooked = dict(_hooked(module))
    for role, parameter in module._parameters.items():
        if parameter is not None and is_prunable(module, hooked.get(role, role), parameter):
            yield LayerWeight(role, module, role, True)
    lists = module._modules.get(_PATH)
    for role, inner in lists.named_children() if isinstance(lists, nn.ModuleDict) else ():
        if isinstance(inner, ParametrizationList) and not holds_table(module):
            yield from _stored(role, inner)


def parametrized_class(module: nn.Module) -> type[nn.Module]:
    """A module's class before it was parametrized, which gives it one of its own."""
    kind: type[nn.Module] = type_before_parametrizations(module)
    return kind


def parametrizations_of(module: nn.Module) -> dict[str, Any]:
    """What computes a module's tensors, as plain data: by a tensor's name a function of torch and its options.

    Nothing where nothing does. A class of the user's stands under its own name, without options.
    """
    found: dict[str, Any] = {}
    for hook in module._forward_pre_hooks.values():
        if type(hook).__name__ in _HOOKED:
            kind = "weight_norm" if type(hook).__name__ == "WeightNorm" else "spectral_norm"
            found[hook.name] = (f"{_HOOKS}.{kind}", _options(hook))  # type: ignore[attr-defined]
    lists = module._modules.get(_PATH)
    for role, steps in lists.named_children() if isinstance(lists, nn.ModuleDict) else ():
        first = next(steps.children())
        kind = type(first).__name__
        name = _FUNCTIONS.get(kind) if type(first).__module__ == parametrizations.__name__ else None
        if name is None or len(list(steps.children())) > 1:
            found[role] = (f"{type(first).__module__}.{type(first).__qualname__}", {})
        else:
            found[role] = (f"{parametrizations.__name__}.{name}", _options(first))
    return {_PATH: found} if found else {}


def parametrize(module: nn.Module, recorded: Mapping[str, Any]) -> None:
    """Give a module the parametrizations of :func:`parametrizations_of`. ValueError for one that is not torch's."""
    for role, (name, options) in recorded.items():
        home, _, kind = name.rpartition(".")
        makers = {_HOOKS: nn.utils, parametrizations.__name__: parametrizations}
        if home not in makers or kind not in _FUNCTIONS.values():
            raise ValueError(f"{role!r} is computed by {name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the hooks are deprecated, and files have them
            getattr(makers[home], kind)(module, role, **options)


def _options(step: Any) -> dict[str, Any]:
    """What torch's own parametrizations are made with."""
    found = {name: vars(step)[name] for name in ("dim", "eps", "n_power_iterations") if name in vars(step)}
    if hasattr(step, "orthogonal_map"):
        found["orthogonal_map"] = step.orthogonal_map.name
        found["use_trivialization"] = hasattr(step, "base")
    return found


def with_computed_weights(module: nn.Module) -> nn.Module | None:
    """A copy of a module with the weights that its parametrizations compute in their place; None where it has none."""
    if not any(is_parametrized(part) for part in module.modules()):
        return None
    made = copied(module, {})
    for part in made.modules():
        if is_parametrized(part):
            for role in list(part.parametrizations):  # type: ignore[arg-type]  # a ModuleDict
                remove_parametrizations(part, role, leave_parametrized=True)
    return made


def copied(module: Module, memo: dict[int, Any]) -> Module:
    """``copy.deepcopy`` of a module with a memo, also where hooks or parametrizations compute its weights.

    What hooks or the forward compute anew each time is copied detached, which deepcopy refuses. A parametrized module
    has a class of its own, with a property for each weight; so has the copy then, so that what is done to one of them
    (``remove_parametrizations``) leaves the other as it is.
    """
    for value in results_held(module):
        memo.setdefault(id(value), value.detach().clone())
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        kind = type(part)
        if is_parametrized(part) and kind.__module__ == _CLASSES:
            own = {key: item for key, item in vars(kind).items() if key not in ("__dict__", "__weakref__")}
            part.__class__ = type(kind.__name__, kind.__bases__, own)
    return made


def _hooked(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The tensors that hooks compute a weight from, and what that is called."""
    for hook in module._forward_pre_hooks.values():
        suffix = _HOOKED.get(type(hook).__name__)
        if suffix is not None and type(hook).__module__.startswith("torch.nn.utils."):
            yield f"{hook.name}{suffix}", hook.name  # type: ignore[attr-defined]


def _stored(role: str, steps: ParametrizationList) -> Iterator[LayerWeight]:
    """The tensors that a parametrized weight is computed from: layers, and prunable if zeros in them are its zeros."""
    norm = len(steps) == 1 and isinstance(steps[0], parametrizations._WeightNorm)
    for name, parameter in steps.named_parameters(recurse=False):
        if 2 <= parameter.ndim <= 5 and not (norm and name == "original0"):
            prunable = norm or (name == "original" and _keeps_zeros(steps, parameter))
            yield LayerWeight(f"{_PATH}.{role}.{name}", steps, name, prunable)


def _keeps_zeros(steps: ParametrizationList, parameter: nn.Parameter) -> bool:
    """Whether zeros of the stored tensor are zeros of what is computed, at their places; tried on random numbers.

    Without values (the meta device) the shape alone is compared.
    """
    if isinstance(steps[0], parametrizations._Orthogonal):
        return False  # costs the third power of the width, and is known
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(parameter.shape, generator=generator).to(parameter)
    kept = (torch.rand(parameter.shape, generator=generator) < 0.5).to(parameter.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            value = value * kept
            for step in steps:
                value = copy.deepcopy(step).eval()(value)
    except Exception:  # a parametrization is the user's code, and may raise anything
        return False
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return False
    return bool(value.is_meta) or not bool((value[~kept] != 0).any())
