"""What the networks that a library builds show of a checkpoint's names: lengths of lists, and how it calls them.

No weight is made or read: networks are on the meta device, see :mod:`elastic_ir.checkpoints.libraries.library`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elastic_ir.checkpoints.libraries.library import Config, Library, Shape
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import DIGITS


def lengths(module: Any) -> dict[str, int]:
    """How many numbers stand behind each head of a network's names (``layers.``)."""
    found: dict[str, set[str]] = {}
    for name in module.state_dict():
        for match in re.finditer(rf"(?<![0-9]){DIGITS}(?=\.|$)", name):
            found.setdefault(name[: match.start()], set()).add(match[0])
    return {head: len(numbers) for head, numbers in found.items()}


def shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def head_of(library: Library, config: Config, tensors: Mapping[str, Shape], stack: Stack) -> str | None:
    """What stands before the numbers of a stack's modules, where the class calls them otherwise than the checkpoint.

    It shows from what is missed when a layer's tensors are. None where that tells nothing.
    """
    layers = stack.contents(tensors)[:2]
    missed = []
    for layer in layers:
        rest = {name: shape for name, shape in tensors.items() if name not in set(layer.values())}
        missed.append(set(library.loading(library.network(config, library.file), rest)["missing"]))
    own = (
        [sorted(names - missed[1 - at]) for at, names in enumerate(missed)] if len(missed) == 2 else [[], []]
    )
    for one, two in zip(*own, strict=False):
        first, second = re.split(f"({DIGITS})", one), re.split(f"({DIGITS})", two)
        at = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
        if at % 2:  # the first that differs is a number
            return "".join(first[:at])
    return None
