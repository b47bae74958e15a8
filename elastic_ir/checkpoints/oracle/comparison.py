"""Whether a folder's tensors and layers are those that its library expects, asked in a process beside the writing.

The same is asked of the source, see :mod:`elastic_ir.checkpoints.oracle.judgement`. Where the configuration that was
proposed does not fit, the answer may bring one that does. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.checkpoints.config.depth import UnclearError
from elastic_ir.checkpoints.libraries.find import library_of
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import EmitError, PlanError, SourceError
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.counts import Count
from elastic_ir.safety.config_values import plain_values
from elastic_ir.safety.own_process import ProcessError, started
from elastic_ir.tensors.gathered import ByLayer

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]
#: What the process answers, see :func:`elastic_ir.checkpoints.oracle.process.answer`.
Answer = Mapping[str, Any]

_MODULE = "elastic_ir.checkpoints.oracle.process"
_TOLD = 3  #: differences that a refusal names


@dataclass(frozen=True)
class Compared:
    """What came of a comparison that did not end in a refusal."""

    kind: str | None  #: the class that was built; None where there was none
    why: str = ""  #: why none was
    doubtful: frozenset[str] = field(default_factory=frozenset)  #: names that the class did not vouch for
    #: one that fits, found by experiment, where the proposed one does not
    config: dict[str, Any] | None = None
    entries: tuple[str, ...] = ()  #: what it has otherwise than the proposed one, each with its value
    file: str = CONFIG  #: what the configuration is called
    nearest: str = ""  #: where none was proposed or found: what separates the nearest that was tried
    #: and for stacks, by their labels, the entry that counts each, and what else it counts
    counting: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    absent: bool = False  #: whether none was built because the library is not installed
    by_depth: tuple[
        str, ...
    ] = ()  #: what all layers have otherwise since they are more or fewer, a clause each

    def __str__(self) -> str:
        if self.kind is None:
            return f"not compared with the network: {self.why}"
        text = f"every name, shape and kind of layer with {self.kind} as {self.file} has it"
        if self.doubtful:
            text += f", but {len(self.doubtful)} that do not fit the source's either, such as {min(self.doubtful)}"
        return text

    def refusal(self, doubt: PlanError) -> str:
        """Why a change cannot be stated, given what names left in doubt and no experiment has found."""
        if self.kind is None:
            if self.absent and isinstance(doubt, UnclearError):
                return f"{doubt.what}, as far as names show; its network would show more, but {self.why}"
            return f"{doubt} (no network could be asked: {self.why})"
        for label, (entry, others) in self.counting.items():
            if others:
                more = f" and {len(others) - _TOLD} more" if len(others) > _TOLD else ""
                return (
                    f"{self.file}'s {entry} counts {label} together with {', '.join(others[:_TOLD])}{more}, so it can "
                    f"only state that all of them change by the same number: --to-stages {entry}=N (to_stages=) does"
                )
        what = doubt.what if isinstance(doubt, UnclearError) else doubt
        return f"{what} ({self.kind} was built of changed entries; with the nearest, {self.nearest})"

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

    def __init__(self, answer: Callable[[], Answer], doubt: PlanError | None) -> None:
        self._answer = answer
        self._doubt = doubt
        self._found: Compared | None = None

    def result(self) -> Compared:
        """Wait for the result; EmitError, one line, for a folder that the network would not take.

        PlanError, the doubt, where no configuration could be proposed and none was found.
        """
        if self._found is None:
            self._found = judged(self._answer(), proposed=self._doubt is None)
        if self._doubt is not None and self._found.config is None:
            raise PlanError(self._found.refusal(self._doubt))
        return self._found


@contextlib.contextmanager
def comparison(
    source: tuple[Config, Shapes],
    target: tuple[Config, Shapes],
    stacks: Sequence[Stack],
    doubt: PlanError | None = None,
) -> Iterator[Comparison]:
    """Begin to compare the configurations and shapes of source and target; ``stacks`` lead from one to the other.

    ``doubt`` is why the target's configuration is none that could be proposed.
    """
    with asking(asked(source, target, stacks, doubt is None)) as answer:
        yield Comparison(answer, doubt)


@contextlib.contextmanager
def asking(question: Mapping[str, Any]) -> Iterator[Callable[[], Answer]]:
    """Begin to answer a question in a process of its own; what is yielded waits for it.

    Where there is no answer, that has ``unknown`` with the reason.
    """
    library = library_of(question["source"]["config"])
    missing = library.missing()
    if missing is not None:
        yield lambda: {"unknown": missing, "absent": True}
        return
    with started(_MODULE, question) as process:

        def answer() -> Answer:
            try:
                found: Answer = process.answer()
            except ProcessError as error:
                return {"unknown": f"{library.name} could not be asked: {error}"}
            return found

        yield answer


def asked(
    source: tuple[Config, Shapes],
    target: tuple[Config, Shapes],
    stacks: Sequence[Stack],
    proposed: bool = True,
    search: bool = True,
) -> dict[str, Any]:
    """The question; without ``search`` the target's configuration is taken as it is."""
    return {
        "search": search,
        "source": {"config": source[0], "tensors": source[1]},
        "target": {"config": target[0], "tensors": target[1], "proposed": proposed},
        "stacks": [dataclasses.asdict(stack) for stack in stacks],
    }


def vouched(config: Config, shapes: Shapes) -> bool:
    """Whether its library builds a network of a configuration that takes all tensors of these names and shapes."""
    try:
        plain_values(config)  # what no constructor is given is not worth a process
    except SourceError:
        return False
    with asking(asked((config, shapes), (config, shapes), [])) as answer:
        found = answer()
    return "unknown" not in found and not found["doubtful"]


def kinds_of_layers(config: Config, shapes: Shapes, stacks: Sequence[Stack]) -> dict[str, list[int]]:
    """For stacks, by their labels, a number for each layer that layers of one kind share, as the network builds them.

    None for those whose layers are not found there, or where no network can be built.
    """
    with asking({**asked((config, shapes), (config, shapes), stacks), "kinds": True}) as answer:
        found: dict[str, list[int]] = answer().get("kinds", {})
    return found


def growing_together(
    config: Config, shapes: Shapes, stacks: Sequence[Stack], beside: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Which of the lists beside some stacks grow by one when a stack does, as the network builds them.

    All are called by what stands before their numbers. Stacks that no entry makes longer are left out.
    """
    with asking({**asked((config, shapes), (config, shapes), stacks), "beside": beside}) as answer:
        found: dict[str, list[str]] = answer().get("together", {})
    return found


def indexed_by_layer(config: Config, shapes: Shapes, stacks: Sequence[Stack]) -> dict[str, ByLayer]:
    """How tensors beside stacks are indexed by their layers, as the network shows it; none where none can be built."""
    with asking({**asked((config, shapes), (config, shapes), stacks), "indexed": True}) as answer:
        found = answer().get("indexed", {}).items()
    return {name: ByLayer(**{**how, "also": tuple(how["also"])}) for name, how in found}


def lists_counted(config: Config, shapes: Shapes) -> tuple[Count, ...]:
    """The entries of a configuration that count lists of layers, as its network shows it; none where there is none."""
    with asking({**asked((config, shapes), (config, shapes), []), "counts": True}) as answer:
        return tuple(map(Count.of, answer().get("counts", ())))


def layers_in_places(
    source: tuple[Config, Shapes], target: tuple[Config, Shapes], stacks: Sequence[Stack]
) -> dict[str, list[list[int]]]:
    """For stacks of a target for which no configuration is found, by their labels: which layers fit in each place.

    The places are those of the target's configuration, or of the nearest to it; none where there is one that fits, or
    no network can be built.
    """
    with asking({**asked(source, target, stacks, proposed=False), "fitting": True}) as answer:
        found: dict[str, list[list[int]]] = answer().get("fitting", {})
    return found


def judged(answer: Mapping[str, Any], proposed: bool = True) -> Compared:
    """What an answer comes to; EmitError where the configuration that was proposed does not fit, and none was found."""
    if "unknown" in answer:
        return Compared(None, answer["unknown"], absent=answer.get("absent", False))
    kind, file, new = answer["class"], answer["file"], answer["differences"]
    if "fails" in answer:
        raise EmitError(
            f"{answer['library']} builds {kind} from the source's configuration, but not from the one that would be "
            f"written: {answer['fails']}; another plan may fit, --no-check writes it all the same"
        )
    if new and proposed:
        more = f", and {len(new) - _TOLD} more" if len(new) > _TOLD else ""
        raise EmitError(
            f"{kind} of the new {file} would not load what would be written: {'; '.join(new[:_TOLD])}{more}; "
            "another plan may fit, --no-check writes it all the same"
        )
    nearest = new[0] if new and "config" not in answer else ""
    entries = tuple(answer.get("entries", ()))
    return Compared(
        kind,
        "",
        frozenset(answer["doubtful"]),
        answer.get("config"),
        entries,
        file,
        nearest,
        answer.get("counting", {}),
        by_depth=tuple(answer.get("by_depth", ())),
    )
