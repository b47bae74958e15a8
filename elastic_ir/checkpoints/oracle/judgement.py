"""What separates a written folder from the network that its configuration builds, less what separates the source.

What was missing or left over in the source already is not the change's fault, so only a difference whose like the
source does not have, layer by layer along the plan, is one. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from elastic_ir.checkpoints.libraries.library import Report
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import DIGITS


def differences(source: Report, target: Report, stacks: Sequence[Stack]) -> list[str]:
    """Names and shapes of the target that its network would not take, a sentence each; none of the source's own."""
    silent = {name for names in source["silent"].values() for name in names}
    known = {kind: {*source[kind], *silent} for kind in ("missing", "unexpected")}
    odd = {(name, tuple(held), tuple(wanted)) for name, held, wanted in source["shapes"]}
    failed = set(source["failed"])
    new: list[str] = []
    for name, held, wanted in target["shapes"]:
        if not any((origin, tuple(held), tuple(wanted)) in odd for origin in origins(name, stacks)):
            new.append(f"{name} would be {list(held)} and has to be {list(wanted)}")
    # a class that does not report what is missing would keep random values there
    for name in (*target["missing"], *target["silent"]["missing"]):
        if not origins(name, stacks) & known["missing"]:
            new.append(f"{name} would be missing")
    for name in (*target["unexpected"], *target["silent"]["unexpected"]):
        if not origins(name, stacks) & known["unexpected"]:
            new.append(f"{name} has no place in it")
    for name in target["failed"]:
        if not origins(name, stacks) & failed:
            new.append(f"{name} cannot be put together")
    return new


def doubtful(target: Report) -> frozenset[str]:
    """Names of the target for which its class does not vouch, whatever the source's does."""
    shapes = {name for name, _, _ in target["shapes"]}
    return frozenset(shapes | set(target["unexpected"]) | set(target["missing"]))


def origins(name: str, stacks: Sequence[Stack]) -> set[str]:
    """What a name of the target may have been in the source: each number of a changed stack's layer is replaced by
    its source's.

    transformers may call a stack otherwise than the checkpoint does (``encoder.layer`` is ``layers``); only a name that
    is known is replaced strictly.
    """
    found = {name}
    for stack in filter(lambda stack: stack.changed, stacks):
        for match in re.finditer(rf"(?<![0-9]){DIGITS}(?=\.|$)", name):
            number = int(match[0]) - stack.base
            if not 0 <= number < len(stack.sources):
                continue
            source = stack.sources[number]
            if f".{name[: match.start()]}".endswith(f".{stack.series.head}"):
                found.discard(name)
            found.add(f"{name[: match.start()]}{source + stack.base:0{stack.width}}{name[match.end() :]}")
    return found
