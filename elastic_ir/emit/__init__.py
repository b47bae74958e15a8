"""Emission: a graph becomes a trainable module, a state dict, masks, or a file.

The functions are found when first asked for: writing a checkpoint must not import torch.
"""

from __future__ import annotations

from elastic_ir.lazy_names import lazy_names

_HOMES = {
    "masks": "state",
    "remap_optimizer_state": "optimizer",
    "save": "files",
    "state_dict": "state",
    "to_module": "module",
}

__all__ = ["masks", "remap_optimizer_state", "save", "state_dict", "to_module"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
