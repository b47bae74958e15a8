"""A written folder held against the network of its configuration, with the source's where that is at hand. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from elastic_ir.checkpoints.oracle.comparison import Answer, Compared, asked, asking
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.graph import Graph

#: What was compared, in words, and what is not as the network has it.
Outcome = tuple[str, Sequence[str]]


@contextlib.contextmanager
def network_check(
    target: Graph, source: Graph | None, plan: Mapping[str, Sequence[tuple[bool, int]]]
) -> Iterator[Callable[[], Outcome]]:
    """Begin to compare a folder's names, shapes and layers with its network; what is yielded waits for the outcome.

    ``plan`` has for each stack, by its label, whether each layer is of another source, and the layer's number there.
    What does not fit the source's network either is no difference; without the source it is told in the words.
    """
    mine, theirs = (
        target.origin,
        (target if source is None else source).origin,
    )  # a graph of names has no nodes
    if not isinstance(mine, CheckpointSource) or not isinstance(theirs, CheckpointSource):
        yield lambda: ("not compared with the network: no folder", ())
        return
    stacks = [_planned(stack, plan) for stack in (Stack.all_of(source) if source is not None else ())]
    question = asked((theirs.config, theirs.shapes), (mine.config, mine.shapes), stacks, search=False)
    with asking(question) as answer:
        yield lambda: _outcome(answer())


def _planned(stack: Stack, plan: Mapping[str, Sequence[tuple[bool, int]]]) -> Stack:
    layers = plan.get(stack.label)
    if layers is None:
        return stack
    order = tuple(number for _, number in layers)
    taken = tuple((1, number) if other else None for other, number in layers)
    return dataclasses.replace(stack, order=order, taken=taken if any(taken) else ())


def _outcome(answer: Answer) -> Outcome:
    if "unknown" in answer:
        return str(Compared(None, answer["unknown"])), ()
    if "fails" in answer:
        return f"{answer['class']} cannot be built", (
            f"{answer['class']} cannot be built of it: {answer['fails']}",
        )
    compared = Compared(answer["class"], doubtful=frozenset(answer["doubtful"]), file=answer["file"])
    return str(compared), [f"does not fit {answer['class']}: {text}" for text in answer["differences"]]
