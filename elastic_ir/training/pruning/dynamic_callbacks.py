"""RigL and DPF as callbacks of a Lightning Trainer, for any LightningModule with one optimizer.

Importing this file imports Lightning; :mod:`elastic_ir.training.pruning.dynamic` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.optim import Optimizer

from elastic_ir.analysis.pruning.distributions import Distribution, rigl_masks
from elastic_ir.errors import MaskError
from elastic_ir.training.pruning.dynamic import DPF, RigL


class _DynamicCallback(pl.Callback):
    """Makes the method when training starts, and calls it between backward and step; checkpoints carry its state."""

    method: RigL | DPF | None = None

    def __init__(self, network: str, method: Callable[..., Any]) -> None:
        self._network, self._method = network, method
        self._state: dict[str, Any] | None = None

    def make(self, module: nn.Module, optimizer: Optimizer, total_steps: int) -> Any:
        """The method for a network that is about to be trained."""
        return self._method(module, optimizer, total_steps=total_steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the method, with the state of the checkpoint if training goes on."""
        if len(trainer.optimizers) != 1:
            raise MaskError(
                f"{type(self).__name__} works with one optimizer; this module has {len(trainer.optimizers)}"
            )
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise MaskError(f"{type(self).__name__} has a schedule; give the Trainer max_steps or max_epochs")
        try:
            module = pl_module.get_submodule(self._network)
        except AttributeError:
            raise MaskError(f"the module to be trained has no submodule {self._network!r}") from None
        self.method = self.make(module, trainer.optimizers[0], int(steps))
        if self._state is not None:
            self.method.load_state_dict(self._state)
            self._state = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """After backward and before clipping."""
        if self.method is not None:
            self.method.before_step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The network stays pruned; hooks are taken away."""
        if self.method is not None:
            self.method.finish()

    def state_dict(self) -> dict[str, Any]:
        """The method's state, empty before training."""
        return {} if self.method is None else self.method.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts, for there is no optimizer yet."""
        self._state = state_dict or None


class RigLCallback(_DynamicCallback):
    """:class:`~elastic_ir.training.pruning.dynamic.RigL` in a Trainer, from given masks or from random ones.

    Give ``masks``, or a ``sparsity`` with a ``distribution`` and a ``seed`` for random masks
    (:func:`~elastic_ir.analysis.pruning.distributions.rigl_masks`: under ``uniform`` the first layer stays dense).
    Names are those of the LightningModule's submodule ``network`` (``""``: of the LightningModule itself). The other
    options are RigL's.
    """

    method: RigL | None = None

    def __init__(
        self,
        masks: Mapping[str, Any] | None = None,
        *,
        sparsity: float | None = None,
        distribution: Distribution = "erk",
        seed: int = 0,
        leave_out: Collection[str] | str = (),
        network: str = "",
        interval: int = 100,
        drop_fraction: float = 0.3,
        end: float = 0.75,
    ) -> None:
        super().__init__(network, partial(RigL, interval=interval, drop_fraction=drop_fraction, end=end))
        if (masks is None) == (sparsity is None):
            raise MaskError("RigLCallback takes masks, or a sparsity for random masks; give one of them")
        self._masks, self._sparsity = masks, sparsity
        self._distribution, self._seed, self._leave_out = distribution, seed, leave_out

    def make(self, module: nn.Module, optimizer: Optimizer, total_steps: int) -> RigL:
        """RigL with this callback's masks, or a checkpoint's."""
        masks = self._masks if self._state is None else self._state["masks"]
        if masks is None:
            assert self._sparsity is not None
            masks = rigl_masks(
                module, self._sparsity, self._distribution, seed=self._seed, leave_out=self._leave_out
            )
        found: RigL = self._method(module, optimizer, masks, total_steps)
        return found


class DPFCallback(_DynamicCallback):
    """:class:`~elastic_ir.training.pruning.dynamic.DPF` in a Trainer.

    ``network`` as for RigLCallback, the rest is DPF's.
    """

    method: DPF | None = None

    def __init__(
        self,
        sparsity: float,
        *,
        network: str = "",
        interval: int = 16,
        initial: float = 0.0,
        start: float = 0.0,
        end: float = 0.5,
        leave_out: Collection[str] | str = (),
    ) -> None:
        method = partial(
            DPF, sparsity=sparsity, interval=interval, initial=initial, start=start, end=end, leave_out=leave_out
        )  # fmt: skip
        super().__init__(network, method)
