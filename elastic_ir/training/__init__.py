"""Training: finding tickets and comparing them (extra ``[train]``), and what any trainer of a ticket can use.

Schedules, losses and scales of layers are offered here and need no trainer; the engine's files (``fit``, ``imp``,
``study``, ...) are imported by name. This one imports no torch until a function is called or a loss is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastic_ir.training.schedules import Fading, Schedule, schedule_of

if TYPE_CHECKING:
    from elastic_ir.training.gradinit import GradInit, find_scales
    from elastic_ir.training.losses import SoftLabels, distillation_loss, smoothed_cross_entropy

__all__ = [
    "Fading", "GradInit", "Schedule", "SoftLabels", "distillation_loss", "find_scales", "schedule_of",
    "smoothed_cross_entropy",
]  # fmt: skip

_LOSSES = ("SoftLabels", "distillation_loss", "smoothed_cross_entropy")
_SCALES = ("GradInit", "find_scales")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first used."""
    if name in _LOSSES:
        from elastic_ir.training import losses

        return getattr(losses, name)
    if name in _SCALES:
        from elastic_ir.training import gradinit

        return getattr(gradinit, name)
    raise AttributeError(f"module 'elastic_ir.training' has no attribute {name!r}")
