"""Sizes that a layer states beside its weight, where a plan has given that other ones: ``out_features`` and the like.

It serves live modules and outlines of modules (:mod:`elastic_ir.emit.module.outlines`), which need no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from elastic_ir.formats.pickles.description import is_layer

#: What the extents of a layer's weight are called, the first ones, by its class; the first is its bias's as well.
_EXTENTS = {
    "Linear": ("out_features", "in_features"),
    "Embedding": ("num_embeddings", "embedding_dim"),
    "Conv1d": ("out_channels",),
    "Conv2d": ("out_channels",),
    "Conv3d": ("out_channels",),
    "BatchNorm1d": ("num_features",),
    "BatchNorm2d": ("num_features",),
}


def state_sizes(layer: object, shape: Sequence[int]) -> None:
    """Let a layer state the sizes that its weight or bias has, of which this is the shape."""
    for kind, names in _EXTENTS.items():
        if is_layer(layer, kind):
            for name, extent in zip(names, shape, strict=False):
                setattr(layer, name, extent)
