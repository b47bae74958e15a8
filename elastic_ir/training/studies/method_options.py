"""The options of each method of a study, and what each may be; those of RigL and DPF are their callbacks'."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from elastic_ir.analysis.pruning.distributions import Distribution
from elastic_ir.choices import Drop, Order
from elastic_ir.training.entries import AtLeastOne, Count, Range, Share

#: Blocks are looked for in a stage when it is known.
Blocks: TypeAlias = Annotated[
    list[Count], Range(1), "a list of blocks such as [1, 2], counted from 0 in each stage"
]
Dropped: TypeAlias = Drop | Blocks

_DEPTH: dict[str, Any] = {"order": Order, "replicate": Blocks, "drop": Dropped}
#: By method; a method that is not listed has none.
OPTIONS: dict[str, dict[str, Any]] = {
    "transform": {**_DEPTH, "permute_copies": bool, "permute_masks": bool, "new_weights": bool},
    "hybrid": _DEPTH,
    "rigl": {"distribution": Distribution, "interval": AtLeastOne, "drop_fraction": Share, "end": Share},
    "dpf": {"interval": AtLeastOne, "initial": Share, "start": Share, "end": Share},
}
