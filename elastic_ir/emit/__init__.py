"""Emission: a graph becomes a trainable module, a state dict, masks, or a file."""

from __future__ import annotations

from elastic_ir.emit.module import to_module
from elastic_ir.emit.optimizer import remap_optimizer_state
from elastic_ir.emit.state import masks, state_dict

__all__ = ["masks", "remap_optimizer_state", "state_dict", "to_module"]
