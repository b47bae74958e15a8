"""Training: finding tickets and comparing them (extra ``[train]``), and what any trainer of a ticket can use.

Schedules, losses and scales of layers are offered here and need no trainer; the engine's files (``fit``, ``imp``,
``study``, ...) are imported by name, but for what a search in Python takes. This one imports no torch until a function
is called or what needs it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.lazy_names import lazy_names

if TYPE_CHECKING:
    from elastic_ir.analysis.gradinit import GradInit, find_scales
    from elastic_ir.training.data import Data, Split, load_data
    from elastic_ir.training.losses import SoftLabels, distillation_loss, smoothed_cross_entropy
    from elastic_ir.training.pruning.imp import find_tickets
    from elastic_ir.training.schedules import Fading, Schedule, schedule_of
    from elastic_ir.training.settings import Pruning, Training

__all__ = [
    "Data", "Fading", "GradInit", "Pruning", "Schedule", "SoftLabels", "Split", "Training", "distillation_loss",
    "find_scales", "find_tickets", "load_data", "schedule_of", "smoothed_cross_entropy",
]  # fmt: skip

#: Name -> the file that has it.
_LATER = {
    **dict.fromkeys(("SoftLabels", "distillation_loss", "smoothed_cross_entropy"), "losses"),
    **dict.fromkeys(("GradInit", "find_scales"), ".analysis.gradinit"),
    **dict.fromkeys(("Data", "Split", "load_data"), "data"),
    **dict.fromkeys(("Pruning", "Training"), "settings"),
    **dict.fromkeys(("Fading", "Schedule", "schedule_of"), "schedules"),
    "find_tickets": "pruning.imp",
}
__getattr__, __dir__ = lazy_names(__name__, _LATER)
