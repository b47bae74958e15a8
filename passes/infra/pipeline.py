"""Pipelines: passes one after the other over one copy of a graph, verified after each, and recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from elastic_ir.errors import PASS_NOTE, ElasticError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.verifier import verify
from elastic_ir.passes.infra import Pass, default_of, option_fields
from elastic_ir.passes.infra.spec import PassSpec, make_pass, parse_pipeline

#: Told after each pass: the pass, what it made, and the seconds that it took.
Observer = Callable[[Pass, Graph, float], None]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run.

    >>> from elastic_ir.passes import Stretch
    >>> str(Pipeline([Stretch(to_depth=32)]))
    'stretch{to-depth=32}'
    """

    passes: tuple[Pass, ...]

    def __init__(self, passes: Iterable[Pass]) -> None:
        object.__setattr__(self, "passes", tuple(passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __str__(self) -> str:
        return ",".join(str(describe(item)) for item in self.passes)

    @staticmethod
    def parse(text: str) -> Pipeline:
        """A pipeline from its text; PlanError for what cannot be read, an unknown pass or option."""
        from elastic_ir.passes import find_pass

        return Pipeline(make_pass(spec, find_pass(spec.name)) for spec in parse_pipeline(text))

    def run(self, graph: Graph, observer: Observer | None = None, *, verify_each: bool = False) -> Graph:
        """The graph after all passes; the one given stays as it was.

        What a pass edited is verified before the next begins, after others' passes the whole graph, as at the end. An
        error names the pass: those of ElasticIR begin with "pass 'NAME': " (or "before pass", "after pass"), any other
        has it as a note. The record of what ran is kept in ``graph.history.pipeline`` and written with the graph.

        ``verify_each`` verifies the whole after each pass, and also emits and runs the network after each pass, on the
        example inputs: it has to run every block, its outputs have to be finite, and those of a pass that preserves
        the function have to be those before, within rounding. Raises VerifyError that names the pass; what was found
        stands, as plain data for each pass, in ``graph.history.verified``.
        """
        target, ran = graph, graph.history.pipeline
        runs = _Runs(graph) if verify_each else None
        for place, item in enumerate(self.passes):
            start = time.perf_counter()
            with _named(item.name):
                if place == 0:
                    item._discover(graph)  # once, and copied along
                    target = graph.copy()
                target = item.run_on(target)
                if verify_each:
                    verify(target, after=item.name)
            ran = (*ran, str(describe(item)))
            verified = target.history.verified if runs is None else runs.after(item, target)
            target.history = dataclasses.replace(target.history, pipeline=ran, verified=verified)
            if observer is not None:
                observer(item, target, time.perf_counter() - start)
        if not self.passes:
            return graph.copy()
        if not verify_each:
            self._verify(target)
        return target

    def _verify(self, made: Graph) -> None:
        """Verify the whole of what was made; what no pass edited through its rewriter may be any pass's doing."""
        if len(self) == 1:
            verify(made, after=self.passes[0].name)
            return
        try:
            verify(made)
        except VerifyError as error:
            raise VerifyError(
                f"after the pipeline: {error}; --verify-each (verify_each=True) names the pass that left it so"
            ) from error


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Let what a pass raises name it: errors of ours in their text, with their class; a note on all others.

    The command line puts such a note in front of what it says; see :func:`elastic_ir.errors.noted_pass`.
    """
    try:
        yield
    except Exception as error:
        message = str(error)
        if isinstance(error, ElasticError):
            if message.startswith((f"before pass {name!r}: ", f"after pass {name!r}: ")):
                raise
            named = f"pass {name!r}: {message}"
            again: Exception | None = None
            with contextlib.suppress(TypeError):  # an error of somebody's, whose constructor takes more
                again = type(error)(named)
            if again is not None and str(again) == named:
                vars(again).update(vars(error))
                raise again from error
        error.add_note(f"{PASS_NOTE}{name!r}")
        raise


class _Runs:
    """The network run after each pass, and what was found so far."""

    def __init__(self, graph: Graph) -> None:
        from elastic_ir.emit.runs import run_network

        self._run = run_network
        self._before = run_network(graph)
        self._found: tuple[dict[str, Any], ...] = ()

    def after(self, item: Pass, graph: Graph) -> tuple[dict[str, Any], ...]:
        """Run what a pass has made; VerifyError names it where that is wrong."""
        from elastic_ir.emit.runs import compare

        try:
            now = self._run(graph)
            found = compare(self._before, now, preserving=item.preserves_function)
        except ElasticError as error:
            raise VerifyError(f"after pass {item.name!r}: {error}") from error
        self._before = now
        self._found = (*self._found, {"pass": item.name, **found})
        return self._found


def describe(item: Pass) -> PassSpec:
    """A pass as it would be written: its name and the options that differ from their defaults."""
    options: dict[str, str | bool] = {}
    for field in option_fields(item):
        value = getattr(item, field.name)
        if value is None or value == default_of(field):
            continue
        options[field.name.replace("_", "-")] = True if value is True else _text(value)
    return PassSpec(item.name, options)


def _text(value: object) -> str:
    if isinstance(value, Graph):
        return value.name
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(part, (list, tuple)) for part in value)
        return ("|" if nested else ",").join(_text(part) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={_text(part)}" for key, part in value.items())
    return str(value)
