"""Which weights are prunable: those of convolutions and linear layers, seen from a module or from a name and a shape.

Told by form, not by a list of classes: a weight of two to five axes that belongs neither to an embedding nor to a norm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LOOKUP = re.compile(r"emb|wte|wpe|bias_table|position")


def is_prunable(owner: torch.nn.Module, role: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of a module, by its name there, is prunable; so is fused attention's input projection."""
    from torch import nn

    lookup = hasattr(owner, "num_embeddings") or hasattr(owner, "normalized_shape")
    fused = isinstance(owner, nn.MultiheadAttention) and role.endswith("_proj_weight")
    return 2 <= parameter.ndim <= 5 and (fused or (role == "weight" and not lookup))


def looks_prunable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a state dict is prunable, as far as its name and shape show.

    A table that is looked up has two axes; the convolution of a patch embedding has more.
    """
    looked_up = len(shape) == 2 and _LOOKUP.search(name.lower())
    return name.rpartition(".")[2].endswith("weight") and 2 <= len(shape) <= 5 and not looked_up
