"""Tickets in plain PyTorch training: masks that hold, masks by magnitude, and their sparsity.

It imports torch at once; nothing that works without torch imports it.
"""

from __future__ import annotations

from elastic_ir.tickets.enforcement import MaskEnforcer, apply_masks, enforce
from elastic_ir.tickets.magnitude import magnitude_masks, sparsity

__all__ = ["MaskEnforcer", "apply_masks", "enforce", "magnitude_masks", "sparsity"]
