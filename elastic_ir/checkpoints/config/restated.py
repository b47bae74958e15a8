"""A configuration as it will be written: counts and lists, what refers to layers by number, features. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastic_ir.checkpoints.config.depth import reindexed
from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.checkpoints.config.tables import Reader
from elastic_ir.checkpoints.config.taps import taps_followed
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.counts import Count


def restated(
    config: dict[str, Any], stacks: Sequence[Stack], names: Sequence[str], counts: Sequence[Count] = ()
) -> dict[str, Any]:
    """The whole configuration of the changed stacks; PlanError where it cannot state the change."""
    made, _ = reindexed(config, stacks, names, counts=counts)
    made = followed(made, CONFIG, stacks, names, is_config=True).document
    return taps_followed(made, Reader(config, stacks, names))[0]
