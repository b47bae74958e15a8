"""Emission: a graph becomes a trainable module, a state dict, masks, or a file.

The functions are found when first asked for: writing a checkpoint must not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "masks": "state",
    "remap_optimizer_state": "optimizer",
    "save": "files",
    "state_dict": "state",
    "to_module": "module.module",
}

__all__ = ["masks", "remap_optimizer_state", "save", "state_dict", "to_module"]


def __getattr__(name: str) -> Any:
    """The emitter of that name, imported from its file."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elastic_ir.emit' has no attribute {name!r}")
    return getattr(import_module(f"elastic_ir.emit.{_HOMES[name]}"), name)
