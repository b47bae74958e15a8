"""What a pass is: a frozen dataclass whose fields are its options and whose one method rewrites.

(The shape of a pass is xDSL's.) ``name`` is what the command line calls it; the class's first docstring line is its
help. ``run`` copies the graph, lets the pass edit the copy through a rewriter, and verifies the result.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from elastic_ir.errors import ElasticError, PlanError, StructureError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import described
from elastic_ir.ir.structure import Resequenced
from elastic_ir.ir.verifier import verify
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes; subclasses are frozen dataclasses with a class-level ``name``."""

    name: ClassVar[str]
    #: Whether a network in which nothing repeats is refused; passes on single layers take it as well.
    needs_structure: ClassVar[bool] = True
    #: Whether the network computes in evaluation what it did before; ``verify_each`` then compares the outputs.
    preserves_function: ClassVar[bool] = False
    #: What it can and cannot do for the size of files and for latency; ``elastic-ir apply --measure`` shows it.
    gains: ClassVar[str] = ""

    @abstractmethod
    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced | None:
        """Edit the graph, through the rewriter only; returns what became of the stages, where that was its work."""

    def precondition(self, graph: Graph) -> Any:
        """Raise PlanError where the graph is not what the pass works on; nothing has been edited yet.

        What it returns is handed to :meth:`postcondition`: a pass notes here what it compares afterwards (a depth, a
        set of names), so that no second graph is ever kept.
        """
        return None

    def postcondition(self, graph: Graph, noted: Any) -> None:
        """Raise VerifyError where the graph made is not what the pass promises; ``noted`` is from the precondition."""
        return None

    def run(self, graph: Graph) -> Graph:
        """The rewritten and verified copy of a graph; the graph given stays as it was."""
        self._discover(graph)  # once, and copied along
        made = self.run_on(graph.copy())
        if self._is_ours:
            verify(made, after=self.name)
        return made

    @property
    def _is_ours(self) -> bool:
        """Whether it is a pass of ElasticIR: that these edit through the rewriter alone is seen to by tests."""
        return type(self).__module__.startswith("elastic_ir.")

    def run_on(self, target: Graph) -> Graph:
        """Rewrite a graph that nobody else holds, and verify what was edited of it; after others' passes the whole.

        Pipelines copy once for all their passes, and verify the whole at their end. Raises what the pass refuses,
        PlanError from its precondition, VerifyError from the verifier or its postcondition; the last three name the
        pass.
        """
        if not self._is_ours:
            return self._run_on(target)  # what somebody's own pass raises is nobody else's fault
        with described(target):
            return self._run_on(target)

    def _run_on(self, target: Graph) -> Graph:
        self._discover(target)
        try:
            noted = self.precondition(target)
        except ElasticError as error:
            raise PlanError(f"before pass {self.name!r}: {error}") from error
        with Rewriter(target) as rewriter:
            target.resequenced = self.rewrite(target, rewriter) or target.resequenced
        if rewriter.findings is not None:
            reports = {**target.history.reports, self.name: rewriter.findings}
            target.history = dataclasses.replace(target.history, reports=reports)
        verify(target, after=self.name, edited=rewriter.edited if self._is_ours else None)
        try:
            self.postcondition(target, noted)
        except ElasticError as error:
            raise VerifyError(f"after pass {self.name!r}: {error}") from error
        return target

    def report(self, graph: Graph) -> Mapping[str, Any]:
        """What the pass reported of its work on the graph that it made (:meth:`Rewriter.report`)."""
        return graph.history.reports[self.name]

    def summary(self, graph: Graph) -> str | None:
        """One line for a reader about what the pass did to the graph that it made, where that is worth saying."""
        return None

    def _need_layers(self, graph: Graph) -> None:
        """PlanError where a pass that changes single layers does not see them, or cannot have them written."""
        need_network(graph, self.name)
        if graph.info.frontend == "export":
            raise PlanError(
                f"{graph.name} was traced by torch.export, and is written as a module of its own class, whose layers "
                f"{self.name} cannot change; export it as ONNX (elastic-ir export) and apply {self.name} to that file"
            )

    def _need_pytorch(self, graph: Graph) -> None:
        """PlanError where a pass that inserts PyTorch's operations does not see layers, or sees those of ONNX."""
        need_network(graph, self.name)
        if graph.info.frontend == "export":
            raise PlanError(
                f"{graph.name} was traced by torch.export, and is written as a module of its own class, to which "
                f"{self.name} cannot add layers; torch.fx has to trace it (frontend='fx' shows why it does not)"
            )
        if graph.info.frontend == "onnx":
            raise PlanError(
                f"{graph.name} is an ONNX graph, and {self.name} inserts operations of PyTorch; apply it to the "
                "PyTorch network that the file was exported from, or to the module (trace graph.to_module())"
            )

    def _discover(self, graph: Graph) -> None:
        try:
            graph.structure  # noqa: B018 - before it is edited
        except StructureError:
            if self.needs_structure:
                raise

    @classmethod
    def options(cls) -> list[tuple[str, str, str]]:
        """Name, what can be typed, and default of each option that text can give, as ``elastic-ir passes`` has them."""
        from elastic_ir.passes.infra.option_table import option_table

        return [row[:3] for row in option_table(cls)]

    @classmethod
    def help(cls) -> str:
        """The first line of the class's docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def option_fields(kind: type[Pass] | Pass) -> list[dataclasses.Field[Any]]:
    """The options of a pass in the order that readers see them: those that are given by keyword alone come last."""
    return sorted(dataclasses.fields(kind), key=lambda field: bool(field.kw_only))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What an option is where nobody gives it; ``dataclasses.MISSING`` where it has to be given."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def need_network(graph: Graph, name: str) -> None:
    """PlanError where a graph is weights alone, for the pass of that name, which has to see the nodes."""
    if not len(graph):
        raise PlanError(
            f"{graph.name} was read without its network, and {name} has to see what reads what; "
            "pass --arch SOURCE (arch=...)"
        )


def left(skipped: Mapping[str, str], what: str = "") -> str:
    """How many were left alone, as the end of a sentence; nothing where none was."""
    return f", {len(skipped)} {what}left{reasons(skipped)}" if skipped else ""


def reasons(skipped: Mapping[str, str]) -> str:
    """What was left alone, in brackets: the first, and why."""
    if not skipped:
        return ""
    name, why = next(iter(skipped.items()))
    return f" ({name}: {why}{'; ...' if len(skipped) > 1 else ''})"
