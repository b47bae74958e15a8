"""The section of a model card that says where a checkpoint of another depth comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_ir.checkpoint_record import Step
from elastic_ir.config_depth import Stack

CARD = "README.md"
_LIMIT = 4 << 20  #: bytes of a card that are kept


def card(path: Path, step: Step, stacks: Sequence[Stack]) -> str:
    """The source's card, if there is one, with a section on what was done: source, plan and lineage.

    The text before is kept as it is, its metadata included; earlier sections of ours stay, so that the card tells the
    whole descent.
    """
    before = ""
    if path.is_file():
        with path.open("rb") as file:
            before = file.read(_LIMIT).decode("utf-8", "replace").rstrip() + "\n\n"
    lines = [
        "## Depth changed by ElasticIR",
        "",
        f"Made from `{step.sources[0]}` by ElasticIR {step.version}. Every tensor is a copy of one of the "
        "source's; what lies outside the layers below is as it was.",
        "",
        "| layers | before | after | plan (source layers in order) |",
        "|---|---|---|---|",
    ]
    for stack in stacks:
        lines.append(f"| `{stack.label}` | {stack.before} | {len(stack.order)} | {runs(stack.order)} |")
    lines += ["", "Layer by layer, target from source, where the number changed:", ""]
    for stack in stacks:
        moved = [f"{at} from {source}" for at, source in enumerate(stack.order) if at != source]
        lines.append(f"- `{stack.label}`: {', '.join(moved) or 'none'}")
    return before + "\n".join(lines) + "\n"


def moves(order: Sequence[int]) -> list[tuple[str, str]]:
    """Runs of target layers and the runs of source layers that they come from: ``("16-31", "6-21")``."""
    found: list[tuple[str, str]] = []
    start = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or order[place] != order[place - 1] + 1:
            found.append((runs(range(start, place)), runs(order[start:place])))
            start = place
    return found


def runs(order: Sequence[int]) -> str:
    """Layer numbers as ``--plan`` takes them, two or more in a row as a range: ``0-15,6-21``."""
    parts: list[str] = []
    start = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or order[place] != order[place - 1] + 1:
            run = order[start:place]
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            start = place
    return ",".join(parts)
