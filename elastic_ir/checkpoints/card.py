"""The section of a model card that states where a checkpoint of another depth comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_ir.checkpoints.config.depth import Stack
from elastic_ir.checkpoints.record import Step
from elastic_ir.errors import printable
from elastic_ir.ir.numbering import consecutive

CARD = "README.md"
HEADING = "## Depth changed by ElasticIR"
_LIMIT = 4 << 20  #: bytes of a card that are kept


def card_before(path: Path) -> str:
    """A card without its last section of ours; nothing where that is all of it."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        lines = file.read(_LIMIT).decode("utf-8", "replace").splitlines()
    if HEADING in lines:
        begin = len(lines) - 1 - lines[::-1].index(HEADING)
        end = next((at for at in range(begin + 1, len(lines)) if lines[at].startswith("#")), len(lines))
        lines[begin:end] = []
    text = "\n".join(lines).strip("\n")
    return f"{text}\n" if text else ""


def card(path: Path, step: Step, stacks: Sequence[Stack], names: Sequence[str] = ()) -> str:
    """The source's card, if there is one, with a section on what was done: sources, plan and lineage.

    ``names`` are what the sources are called in plans, the first one's included. The text before is kept as it is, its
    metadata included; earlier sections of ours stay, so that the card has the whole descent.
    """
    made = f"Made from {_code(step.sources[0])}"
    more = [
        f"{_code(folder)} ({_code(name)})" for folder, name in zip(step.sources[1:], names[1:], strict=True)
    ]
    if more:
        made += f" and layers of {', '.join(more)}"
    changed = [origin.scale for origin in step.lineage.values() if origin.scale is not None]
    copied = "Every tensor is a copy of one of the " + ("sources'" if more else "source's")
    if changed:
        zeros = changed.count(0)
        changes = [f"zeros ({zeros})"] if zeros else []
        changes += [f"multiples ({len(changed) - zeros})"] if len(changed) > zeros else []
        copied += f", but for {' and '.join(changes)}"
    gathered = [name for name, origin in step.lineage.items() if origin.gathering is not None]
    beside = f" but for {', '.join(map(_code, gathered))}, whose entries follow them" if gathered else ""
    lines = [
        HEADING,
        "",
        f"{made} by ElasticIR {step.version}. {copied}; what lies outside the layers below is as it was"
        + (" in the first" if more else "")
        + f"{beside}.",
        "",
        *_plans(step, stacks),
    ]
    lines += ["", "Layer by layer, target from source, where the number changed:", ""]
    for stack in stacks:
        moved = [
            f"{at} from {_label(source, names)}{layer}"
            for at, (source, layer) in enumerate(stack.places())
            if (source, layer) != (0, at)
        ]
        lines.append(f"- {_code(stack.label)}: {printable(', '.join(moved)) or 'none'}")
    return _before(path) + "\n".join(lines) + "\n"


def adapter_card(path: Path, step: Step, stacks: Sequence[Stack]) -> str:
    """The card of an adapter, if there is one, with a section on how it has followed its base."""
    lines = [
        HEADING,
        "",
        f"Made from {_code(step.sources[0])} by ElasticIR {step.version}, in step with the model that it belongs to: "
        "each layer has the tensors of the layer that it was made from.",
        "",
        *_plans(step, stacks),
    ]
    return _before(path) + "\n".join(lines) + "\n"


def _before(path: Path) -> str:
    """A card as it was, if there is one, and an empty line."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_LIMIT).decode("utf-8", "replace").rstrip() + "\n\n"


def _plans(step: Step, stacks: Sequence[Stack]) -> list[str]:
    """The plan as a table."""
    lines = ["| layers | before | after | plan (source layers in order) |", "|---|---|---|---|"]
    for stack in stacks:
        label = _code(stack.label).replace("|", "\\|")
        plan = printable(step.plan[stack.label])
        lines.append(f"| {label} | {stack.before} | {len(stack.order)} | {plan} |")
    return lines


def _code(name: str) -> str:
    """A name as code, which no page takes for markup."""
    return f"`{printable(name).replace('`', '&#96;')}`"


def moves(stack: Stack, names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Runs of target layers and the runs of source layers that they come from: ``("16-31", "6-21")``."""
    found: list[tuple[str, str]] = []
    at = 0
    for source, run in consecutive(stack.places()):
        found.append((_range_text(range(at, at + len(run))), _label(source, names) + _range_text(run)))
        at += len(run)
    return found


def plan_text(stack: Stack, names: Sequence[str] = ()) -> str:
    """A stack's layers as ``--plan`` takes them: ``0-15,b/6-21``; ``names`` are the sources', the first one's too."""
    return ",".join(source for _, source in moves(stack, names))


def _label(source: int, names: Sequence[str]) -> str:
    return f"{names[source]}/" if source else ""


def _range_text(run: range) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
