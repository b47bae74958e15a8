"""Whether a folder's tensors are those that transformers expects, asked in a process beside the writing. No torch.

The same is asked of the source: what was missing or left over there already is not the change's fault, so only a
difference whose like the source does not have, layer by layer along the plan, is one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import EmitError, PlanError
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.safety.own_process import OwnProcess, ProcessError, started

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

_MODULE = "elastic_ir.checkpoints.config.native_names"
_TOLD = 3  #: differences that a refusal names
_NEEDED = ("torch", "transformers")


@dataclass(frozen=True)
class Compared:
    """What came of a comparison that did not end in a refusal."""

    kind: str | None  #: the class that was built; None where there was none
    why: str = ""  #: why none was
    doubtful: frozenset[str] = field(default_factory=frozenset)  #: names that the class did not vouch for

    def __str__(self) -> str:
        if self.kind is None:
            return f"not compared with the network: {self.why}"
        text = f"every name and shape with {self.kind} as config.json has it"
        if self.doubtful:
            text += f", but {len(self.doubtful)} that do not fit the source's either, such as {min(self.doubtful)}"
        return text

    def prove(self, beside: Mapping[str, str]) -> None:
        """PlanError, the reason, for names of what may go by the number of layers and which no network vouches for."""
        for name, why in beside.items():
            doubted = any(f".{one}".endswith(f".{name}") or f".{name}." in f".{one}" for one in self.doubtful)
            if self.kind is None or doubted:
                raise PlanError(why)


#: The result where the comparison was not wanted.
NOT_WANTED = Compared(None, "--no-check")


class Comparison:
    """A comparison that goes on."""

    def __init__(self, process: OwnProcess | None, stacks: Sequence[Stack]) -> None:
        self._process = process
        self._stacks = stacks
        self._found: Compared | None = None

    def result(self) -> Compared:
        """Wait for the result; EmitError, one line, for a folder that the network would not take."""
        if self._found is None:
            self._found = self._collected()
        return self._found

    def _collected(self) -> Compared:
        if self._process is None:
            missing = next(name for name in _NEEDED if importlib.util.find_spec(name) is None)
            return Compared(None, f"{missing} is not installed; pip install 'elastic-ir[transformers]'")
        try:
            source, target = self._process.answer()
        except ProcessError as error:
            return Compared(None, f"transformers could not be asked: {error}")
        return judged(source, target, self._stacks)


@contextlib.contextmanager
def comparison(
    source: tuple[Config, Shapes], target: tuple[Config, Shapes], stacks: Sequence[Stack]
) -> Iterator[Comparison]:
    """Begin to compare the configurations and shapes of source and target; ``stacks`` lead from one to the other."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        yield Comparison(None, stacks)
        return
    networks = [{"config": config, "tensors": shapes} for config, shapes in (source, target)]
    with started(_MODULE, {"networks": networks}) as process:
        yield Comparison(process, stacks)


def judged(source: Mapping[str, Any], target: Mapping[str, Any], stacks: Sequence[Stack]) -> Compared:
    """What the answers for source and target come to; EmitError where the target has differences of its own."""
    for answer in (source, target):
        if "unknown" in answer:
            return Compared(None, answer["unknown"])
    if "fails" in source:
        return Compared(None, source["fails"])
    kind = target["class"]
    if "fails" in target:
        raise EmitError(
            f"transformers builds {kind} from the source's configuration, but not from the one that would be written: "
            f"{target['fails']}; another plan may fit, --no-check writes it all the same"
        )
    known = {"missing": set(source["missing"]), "unexpected": set(source["unexpected"])}
    for group in known.values():
        group.update(source["ignored"])
    odd = {(name, tuple(held), tuple(wanted)) for name, held, wanted in source["shapes"]}
    failed = set(source["failed"])
    new: list[str] = []
    for name, held, wanted in target["shapes"]:
        if not any((origin, tuple(held), tuple(wanted)) in odd for origin in origins(name, stacks)):
            new.append(f"{name} would be {list(held)} and has to be {list(wanted)}")
    for name in target["missing"]:
        if not origins(name, stacks) & known["missing"]:
            new.append(f"{name} would be missing")
    for name in target["unexpected"]:
        if not origins(name, stacks) & known["unexpected"]:
            new.append(f"{name} has no place in it")
    for name in target["failed"]:
        if not origins(name, stacks) & failed:
            new.append(f"{name} cannot be put together")
    if new:
        more = f", and {len(new) - _TOLD} more" if len(new) > _TOLD else ""
        raise EmitError(
            f"{kind} of the new config.json would not load what would be written: {'; '.join(new[:_TOLD])}{more}; "
            "another plan may fit, --no-check writes it all the same"
        )
    doubtful = {name for name, _, _ in target["shapes"]} | set(target["unexpected"]) | set(target["missing"])
    return Compared(kind, doubtful=frozenset(doubtful))


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
