"""Dynamic sparse training: masks that move while the network trains (RigL, DPF), in any training loop.

Both work beside an optimizer and ask for one line between ``backward()`` and ``optimizer.step()``::

    loss.backward()
    method.before_step()
    optimizer.step()

What follows the step they do by a hook of the optimizer. Outside of ``optimizer.step()`` the module is always the
pruned network: it can be validated and saved at any time. Gradient accumulation calls ``before_step`` once per step, on
the sum; with gradient clipping it comes first. With a GradScaler, ``scaler.unscale_`` comes before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from elastic_ir.errors import MaskError
from elastic_ir.tensors.smallest import pruned_count
from elastic_ir.tickets.enforcement import MaskEnforcer, enforce
from elastic_ir.tickets.magnitude import masks_from_scores, prunable_weights
from elastic_ir.tickets.masked import MaskedWeight, masked_weights


@dataclass(frozen=True)
class Update:
    """One change of masks: when, by how much, and the weights that came and went in each layer."""

    step: int
    share: float  #: RigL: the fraction that was dropped; DPF: the sparsity of the new masks
    grown: dict[str, int]  #: alive now and not before
    dropped: dict[str, int]  #: alive before and not now


class RigL:
    """Rigged lottery (Evci et al. 2020, algorithm 1): drop small weights, grow where the gradient is large.

    The module trains under ``masks`` (see :func:`~elastic_ir.tickets.enforce`;
    :func:`~elastic_ir.analysis.pruning.distributions.rigl_masks` draws them). At every ``interval``-th step before
    ``end * total_steps`` each layer drops the fraction :meth:`drop_fraction` of its alive weights, those of smallest
    magnitude, and grows as many of its dead ones, those of largest gradient; weights that were just dropped may
    return. Grown weights start at zero with no momentum. Such a step changes masks *instead of* weights: gradients are
    set to None, so that the optimizer skips all its parameters. At all other steps dead weights get no gradient.

    Equal magnitudes or gradients go by position. An update waits for the next step whose gradients are finite.
    Masks stay on the weights after :meth:`finish`, but are no longer enforced.

    Raises MaskError: masks that do not fit, weights that the optimizer does not hold, or options out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        masks: Mapping[str, Any],
        total_steps: int,
        *,
        interval: int = 100,
        drop_fraction: float = 0.3,
        end: float = 0.75,
    ) -> None:
        check_rigl(total_steps, interval=interval, drop_fraction=drop_fraction, end=end)
        self.total_steps = total_steps
        self.interval = interval
        self.initial_drop_fraction = drop_fraction
        self.last_update_step = math.ceil(end * total_steps) - 1  #: the last step that may change masks
        self.step = 0  #: calls of before_step so far
        self.history: list[Update] = []
        self._changed = 0
        self._module = module
        self._optimizer = optimizer
        self._weights = masked_weights(module, masks)
        _check_held(self._weights, optimizer)
        self._enforcer: MaskEnforcer = enforce(module, optimizer, masks, mask_gradients=False)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks as they are now, boolean, by plain name; copies."""
        return self._enforcer.masks

    def drop_fraction(self, step: int) -> float:
        """The fraction of alive weights that an update at a step drops: cosine decay, ``a/2 (1 + cos(pi t / T_end))``.

        T_end is ``end * total_steps`` rounded up; from there on it is 0.
        """
        last = self.last_update_step + 1
        if step >= last:
            return 0.0
        return self.initial_drop_fraction / 2 * (1 + math.cos(math.pi * step / last))

    @torch.no_grad()
    def before_step(self) -> bool:
        """Call between backward and the optimizer's step; True when masks were changed instead of weights.

        Raises MaskError when a masked weight has no gradient at an update.
        """
        self.step += 1
        due = self.step - self._changed >= self.interval and self.step <= self.last_update_step
        if due:
            gradients = {weight.name: _gradient(weight) for weight in self._weights}
            if all(gradient.isfinite().all() for gradient in gradients.values()):
                self._update(gradients)
                for group in self._optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
                return True
        for weight in self._weights:
            gradient = weight.parameter.grad
            if gradient is not None:
                gradient.masked_fill_(~weight.keep.to(gradient.device), 0)
        return False

    def finish(self) -> None:
        """End the training under masks; the weights stay pruned as they are."""
        self._enforcer.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on from here, beside the module's and the optimizer's state."""
        return {"step": self.step, "changed": self._changed, "masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Load the module and the optimizer first, and make RigL with ``state["masks"]``: under other masks it would
        have zeroed weights that are alive, and MaskError is raised.
        """
        ours = self.masks
        for name, mask in state["masks"].items():
            if name not in ours or not torch.equal(ours[name].cpu(), mask.cpu()):
                raise MaskError(
                    f"RigL was made with other masks than the state's (at {name!r}); give it the state's"
                )
        self.step, self._changed = state["step"], state["changed"]

    def _update(self, gradients: Mapping[str, Tensor]) -> None:
        fraction = self.drop_fraction(self.step)
        masks, grown, dropped = {}, {}, {}
        for weight in self._weights:
            before = weight.keep.to(weight.parameter.device)
            after = _moved(before, weight.parameter.detach(), gradients[weight.name], fraction)
            masks[weight.name] = after
            grown[weight.name] = int((after & ~before).sum())
            dropped[weight.name] = int((before & ~after).sum())
        self._put(masks)
        self._changed = self.step
        self.history.append(Update(self.step, fraction, grown, dropped))

    def _put(self, masks: Mapping[str, Tensor]) -> None:
        """Enforce other masks: dropped weights and their moments become zero; grown ones were, and start so."""
        self._enforcer.remove()
        self._weights = masked_weights(self._module, masks)
        self._enforcer = enforce(self._module, self._optimizer, masks, mask_gradients=False)


def _moved(keep: Tensor, weight: Tensor, gradient: Tensor, fraction: float) -> Tensor:
    """A layer's mask after dropping and growing: as many ones as before."""
    alive = keep.reshape(-1)
    count = int(fraction * int(alive.sum()))
    magnitude = weight.reshape(-1).abs().double()
    magnitude[~alive] = torch.inf
    after = alive.clone()
    after[magnitude.argsort(stable=True)[:count]] = False
    slope = gradient.reshape(-1).abs().double()
    slope[after] = -1
    after[slope.argsort(stable=True, descending=True)[:count]] = True
    return after.reshape(keep.shape)


class DPF:
    """Dynamic pruning with feedback (Lin et al. 2020, algorithm 1): dense weights learn from the pruned network.

    The module holds the pruned weights, and the gradients at them move the dense weights that are kept beside. So a
    weight that was pruned goes on learning, and comes back when it has grown. Masks are made anew from the dense
    weights at every ``interval``-th step (16 in the paper), by magnitude with one threshold for all layers, until the
    end of training. Their sparsity is :meth:`sparsity_at`: cubic from ``initial`` at ``start * total_steps`` to
    ``sparsity`` at ``end * total_steps``; where the ramp starts and ends by default is our choice.

    ``leave_out`` is that of :func:`~elastic_ir.tickets.magnitude_masks`. Weight decay and momentum are the
    optimizer's, on the dense weights. It costs one copy of the prunable weights.

    Raises MaskError: weights that the optimizer does not hold, or options out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        total_steps: int,
        *,
        interval: int = 16,
        initial: float = 0.0,
        start: float = 0.0,
        end: float = 0.5,
        leave_out: Collection[str] | str = (),
    ) -> None:
        check_dpf(sparsity, total_steps, interval=interval, initial=initial, start=start, end=end)
        self.sparsity = sparsity
        self.total_steps = total_steps
        self.interval = interval
        self.initial = initial
        self.ramp = (start * total_steps, end * total_steps)
        self.step = 0  #: the optimizer's steps so far
        self.history: list[Update] = []
        named = prunable_weights(module, leave_out)
        ones = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in named.items()}
        self._weights = masked_weights(module, ones)
        _check_held(self._weights, optimizer)
        self._masks = ones
        self._dense = {weight.name: weight.parameter.detach().clone() for weight in self._weights}
        self._installed: dict[str, tuple[Tensor, int]] = {}
        self._pending = False
        self._handles = [
            optimizer.register_step_post_hook(self._after_step),
            *(
                owner.register_forward_pre_hook(_BeforeForward(self))
                for owner in dict.fromkeys(weight.owner for weight in self._weights)
            ),
        ]
        self._renew(self.sparsity_at(0))

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks as they are now, boolean, by plain name; copies."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    @property
    def dense(self) -> dict[str, Tensor]:
        """The dense weights that learn, by plain name; copies."""
        return {name: weight.clone() for name, weight in self._dense.items()}

    def sparsity_at(self, step: int) -> float:
        """The sparsity of masks that are made after so many steps (Zhu and Gupta 2017, equation 1)."""
        start, end = self.ramp
        if step >= end:
            return self.sparsity
        done = max(0.0, (step - start) / (end - start))
        return self.sparsity + (self.initial - self.sparsity) * (1 - done) ** 3

    @torch.no_grad()
    def before_step(self) -> bool:
        """Call between backward and the optimizer's step: the dense weights are what it will change.

        Returns False (no step is replaced). Raises MaskError when weights were written to from outside since the
        last step, for those values would be lost.
        """
        if not self._pending:
            for weight in self._weights:
                if (foreign := self._installed.get(weight.name)) is None or not _same(
                    weight.parameter, foreign
                ):
                    raise MaskError(
                        f"{weight.name!r} was set from outside while DPF trains it; load a checkpoint before DPF is "
                        "made, and DPF's own state with load_state_dict()"
                    )
                weight.parameter.copy_(self._dense[weight.name])
            self._pending = True
        return False

    @torch.no_grad()
    def finish(self) -> None:
        """End the training: the module has the wanted sparsity, from the dense weights if the last masks had less."""
        self.settle()
        kept = sum(int(mask.sum()) for mask in self._masks.values())
        total = sum(mask.numel() for mask in self._masks.values())
        if total - kept != pruned_count(total, self.sparsity):
            self._renew(self.sparsity)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def settle(self) -> None:
        """Put the pruned weights back if a step was announced and never came, as when a GradScaler skips one.

        Forward passes do it by themselves.
        """
        if self._pending:
            self._install()

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on from here, beside the module's and the optimizer's state."""
        return {"step": self.step, "masks": self.masks, "dense": self.dense}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for name, dense in self._dense.items():
            if name not in state["dense"] or state["dense"][name].shape != dense.shape:
                raise MaskError(f"the state is of another network: it has no weight {name!r} of this shape")
            dense.copy_(state["dense"][name])
            self._masks[name] = state["masks"][name].to(dense.device)
        self.step = state["step"]
        self._install()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._pending:
            raise MaskError("the optimizer stepped on the pruned weights; call before_step() after backward")
        with torch.no_grad():
            for weight in self._weights:
                self._dense[weight.name] = self._dense[weight.name].to(weight.parameter.device)
                self._dense[weight.name].copy_(weight.parameter)
            self.step += 1
            if self.step % self.interval == 0 and self.step >= self.ramp[0]:
                self._renew(self.sparsity_at(self.step))
            else:
                self._install()

    def _renew(self, sparsity: float) -> None:
        before = self._masks
        magnitudes = {name: dense.abs() for name, dense in self._dense.items()}
        pruned = pruned_count(sum(magnitude.numel() for magnitude in magnitudes.values()), sparsity)
        self._masks = masks_from_scores(magnitudes, pruned)
        grown, dropped = {}, {}
        for name, mask in self._masks.items():
            old = before[name].to(mask.device)
            grown[name], dropped[name] = int((mask & ~old).sum()), int((old & ~mask).sum())
        self.history.append(Update(self.step, sparsity, grown, dropped))
        self._install()

    def _install(self) -> None:
        """Put the pruned weights into the module."""
        for weight in self._weights:
            parameter, mask = weight.parameter, self._masks[weight.name]
            with torch.no_grad():
                parameter.copy_(self._dense[weight.name])
                parameter.masked_fill_(~mask.to(parameter.device), 0)
            self._installed[weight.name] = (parameter, parameter._version)
        self._pending = False


class _BeforeForward:
    """Settles DPF before a forward pass; a copied or pickled module takes an inert one along, as it trains no more."""

    def __init__(self, method: DPF | None = None) -> None:
        self._method = method

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if self._method is not None:
            self._method.settle()

    def __reduce__(self) -> tuple[type[_BeforeForward], tuple[()]]:
        return _BeforeForward, ()


def _same(parameter: Tensor, installed: tuple[Tensor, int]) -> bool:
    return parameter is installed[0] and parameter._version == installed[1]


def _gradient(weight: MaskedWeight) -> Tensor:
    gradient = weight.parameter.grad
    if gradient is None:
        raise MaskError(f"{weight.name!r} has no gradient to grow by; call before_step() after backward")
    return gradient


def check_rigl(
    total_steps: int, *, interval: int = 100, drop_fraction: float = 0.3, end: float = 0.75
) -> None:
    """MaskError where options of :class:`RigL` are out of range; for who wants to know before there is a network."""
    _check_steps(total_steps, interval)
    _check_shares(drop_fraction=drop_fraction, end=end)


def check_dpf(
    sparsity: float, total_steps: int, *,
    interval: int = 16, initial: float = 0.0, start: float = 0.0, end: float = 0.5,
) -> None:  # fmt: skip
    """MaskError where options of :class:`DPF` are out of range; for who wants to know before there is a network."""
    _check_steps(total_steps, interval)
    _check_shares(sparsity=sparsity, initial=initial, start=start, end=end)
    if end < start:
        raise MaskError(f"the ramp ends at {end}, before it starts at {start}")
    if initial > sparsity:
        raise MaskError(f"the initial sparsity {initial} is above the final one, {sparsity}")


def _check_steps(total_steps: int, interval: int) -> None:
    for name, value in (("total_steps", total_steps), ("interval", interval)):
        if value < 1:
            raise MaskError(f"{name} is {value}; it must be at least 1")


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise MaskError(f"{name} is {value}, not between 0 and 1")


def _check_held(weights: Collection[MaskedWeight], optimizer: Optimizer) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for weight in weights:
        if id(weight.parameter) not in held:
            raise MaskError(
                f"{weight.name!r} is to be trained sparse, but the optimizer does not hold it; leave it out"
            )
