"""The mask enforcer: keeps pruned weights at exactly zero while plain PyTorch trains the rest.

It works by hooks alone, on the optimizer, on gradients and on loading, so that the module keeps its parameters and
names: checkpoints, ``torch.compile``, autocast and DDP see an ordinary network. ``torch.nn.utils.prune`` instead
renames the weights, and multiplies them anew in every forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from elastic_ir.tickets.masked import MaskedWeight, masked_weights, zero_pruned


def enforce(
    module: nn.Module, optimizer: Optimizer, masks: Mapping[str, Any], *, mask_gradients: bool = True
) -> MaskEnforcer:
    """Zero the pruned weights of a module now, and after each step of its optimizer.

    ``masks`` maps parameter names to zeros and ones of the weight's shape (tensors of any dtype, arrays, or
    :class:`~elastic_ir.tensors.lazy.Mask`); names may carry the prefixes of torch.compile and DDP, or lack them. The
    enforcer lives as long as the optimizer does; the result is needed only to end it earlier, by ``remove()`` or as a
    context manager.

    Pruned weights get no gradient, so that they count in no gradient norm (clipping, LAMB), in no line search (LBFGS)
    and in no momentum: the survivors train exactly as if the pruned ones did not exist. ``mask_gradients=False`` lets
    dense gradients through for methods that grow weights back; weights are zeroed after each step all the same.

    Raises MaskError that names the weight: unknown name, wrong shape, or values other than 0 and 1.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> with enforce(layer, sgd, {"weight": torch.tensor([[1, 0]])}):
    ...     layer(torch.ones(3, 2)).sum().backward()
    ...     sgd.step()
    >>> layer.weight[0, 1].item()
    0.0
    """
    return MaskEnforcer(masked_weights(module, masks), optimizer, mask_gradients)


def apply_masks(module: nn.Module, masks: Mapping[str, Any]) -> None:
    """Zero a module's pruned weights once, in place; raises MaskError as :func:`enforce` does."""
    with torch.no_grad():
        zero_pruned((weight, weight.parameter) for weight in masked_weights(module, masks))


class MaskEnforcer:
    """The hooks that :func:`enforce` set; ``remove()`` or the end of a ``with`` block takes them away.

    Masks follow their weights to another device or dtype by themselves. A weight loaded into the module is masked at
    once, and so is a momentum loaded into the optimizer. Weights that this optimizer does not hold (frozen ones, or
    those of another optimizer) are masked when they are set or loaded and otherwise left alone.
    """

    def __init__(self, weights: Sequence[MaskedWeight], optimizer: Optimizer, mask_gradients: bool) -> None:
        self._weights = tuple(weights)
        self._optimizer = optimizer
        self._mask_gradients = mask_gradients
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_post_hook(lambda _: self._mask_momenta()),
        ]
        owned: dict[nn.Module, list[MaskedWeight]] = {}
        for weight in self._weights:
            owned.setdefault(weight.owner, []).append(weight)
        for owner, group in owned.items():
            hook = _AfterLoad(self, group)
            handle = owner.register_load_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
            self._handles.append(handle)
        self.apply()

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by plain parameter name, as boolean tensors; copies."""
        return {weight.name: weight.keep for weight in self._weights}

    def apply(self) -> None:
        """Mask the weights, gradients and momenta as they are now; needed only after writing to them by hand."""
        self._settle(self._weights)
        self._mask_momenta()

    def remove(self) -> None:
        """End the enforcement. The weights stay as they are; from now on training may revive them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for weight in self._weights:
            weight.unwatch()

    def __enter__(self) -> MaskEnforcer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.no_grad()
    def _settle(self, weights: Sequence[MaskedWeight]) -> None:
        """Mask weights that were just set or replaced, with what gradients they have."""
        zero_pruned((weight, weight.parameter) for weight in weights)
        if not self._mask_gradients:
            return
        for weight in weights:
            weight.watch()
            gradient = weight.parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                zero_pruned([(weight, gradient)])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Only what the step may have written: touching another weight would invalidate a graph that still needs it
        # (a discriminator's while the generator steps). Read anew each time, for groups may be added.
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        pairs = [
            (weight, parameter) for weight in self._weights if id(parameter := weight.parameter) in stepped
        ]
        zero_pruned(pairs)
        if self._mask_gradients:
            for weight, parameter in pairs:
                if weight.watched is not parameter:
                    weight.watch()  # unfrozen, or replaced, since the last step

    @torch.no_grad()
    def _mask_momenta(self) -> None:
        """Zero the optimizer's moments where weights are pruned; with masked gradients they stay so by themselves."""
        for weight in self._weights:
            parameter = weight.parameter
            for key, value in self._optimizer.state.get(parameter, {}).items():
                # integers hold quantized moments, whose zero need not mean 0
                moment = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
                if moment and key != "step" and value.shape == parameter.shape:
                    zero_pruned([(weight, value)])


class _AfterLoad:
    """Masks the weights of one module when they were loaded.

    A copied or pickled module (an average of weights, a checkpoint of the whole module) takes an inert one along, not
    the enforcer with its optimizer.
    """

    def __init__(self, enforcer: MaskEnforcer | None = None, weights: Sequence[MaskedWeight] = ()) -> None:
        self._enforcer = enforcer
        self._weights = weights

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        if self._enforcer is not None:
            self._enforcer._settle(self._weights)

    def __reduce__(self) -> tuple[type[_AfterLoad], tuple[()]]:
        return _AfterLoad, ()
