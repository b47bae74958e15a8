"""What is done to copies alone: chosen tensors of theirs scaled, or zero, as lazy recipes.

A copy is every occurrence of a source block after its first. With the last layer of each residual branch at zero a copy
is the identity until it is trained (Wu et al. 2024, *LLaMA Pro: Progressive LLaMA with Block Expansion*, section 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Block, Stage
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.arrays import FLOATS
from elastic_ir.tensors.recipes import Scaled, Zeros, with_values
from elastic_ir.tensors.weights import Weight

AUTO = "auto"  #: what closes the residual branches, as the graph's nodes show it


@dataclass(frozen=True)
class CopyEdits:
    """Factors by the names of modules or tensors inside a block, and what is zero.

    ``zero`` is a list of such names, ``"auto"``, or for each stage the tensors' names inside its blocks. A name is one
    or several whole parts of a path: ``o_proj``, ``mlp.down_proj``, ``o_proj.weight``. The first factor that fits
    counts.
    """

    scale: Mapping[str, float] = field(default_factory=dict)
    zero: Sequence[str] | Mapping[str, Sequence[str]] | str = ()

    @staticmethod
    def of(scale: Mapping[str, float] | str | None, zero: Any) -> CopyEdits:
        """From what a user gave: texts as the command line takes them, or values. Raises PlanError."""
        if isinstance(zero, str) and zero != AUTO:
            zero = parse_names(zero)
        return CopyEdits(parse_scale(scale) if isinstance(scale, str) else dict(scale or {}), zero or ())

    def apply(self, rewriter: Rewriter, graph: Graph, sequence: Sequence[Sequence[Hashable]]) -> None:
        """Edit the copies of a graph whose stages hold the blocks of ``sequence``, in that order.

        Raises PlanError where there is no copy, where a name fits nothing in any of them, where a tensor would be
        both, was scaled before, or is of a dtype that cannot be scaled to the bit.
        """
        if not self.scale and not self.zero:
            return
        copies = [
            (stage, block)
            for stage, keys in zip(graph.stages, sequence, strict=True)
            for place, block in enumerate(stage.all_blocks)
            if keys[place] in keys[:place]
        ]
        if not copies:
            raise PlanError("no block occurs twice, so there is no copy to scale or to set to zero")
        fitted: set[str] = set()
        for stage, block in copies:
            zeros = self._zeros(stage, block, graph)
            for weight, inside in weights_in(block, graph):
                factor = next((name for name in self.scale if fits(name, inside)), None)
                fitted.update(name for name in self._names() if fits(name, inside))
                if weight.name in zeros:
                    if factor is not None:
                        raise PlanError(f"{weight.origin} cannot be both scaled ({factor}) and zero")
                    set_zero(rewriter, weight)
                elif factor is not None:
                    set_scaled(rewriter, weight, self.scale[factor])
        for name in self._names():
            if name not in fitted:
                stage, block = copies[0]
                raise PlanError(
                    f"{name!r} is in no copied block; {stage.name} has {candidates(block, graph)}"
                )

    def _names(self) -> list[str]:
        named = () if isinstance(self.zero, str | Mapping) else self.zero
        return [*self.scale, *named]

    def _zeros(self, stage: Stage, block: Block, graph: Graph) -> set[str]:
        """The names of a copy's tensors that are to be zero."""
        if self.zero == AUTO:
            from elastic_ir.analysis.branches import branches_of

            found, reason = branches_of(block, graph)
            if not found:
                raise PlanError(
                    f"a copy of {block.origin} cannot start as the identity: {reason}; name what is to be zero "
                    f"by --zero (zero=): {candidates(block, graph)}"
                )
            return {name for branch in found for name in branch.weights}
        inside = weights_in(block, graph)
        if isinstance(self.zero, Mapping):
            wanted = set(self.zero.get(stage.name, ()))
            zeros = {weight.name for weight, name in inside if name in wanted}
            if not zeros:
                raise PlanError(
                    f"a copy of {block.origin} cannot start as the identity: it holds none of "
                    f"{', '.join(sorted(wanted)) or 'the layers that close the branches'}; name what is to be zero by "
                    f"--zero (zero=): {candidates(block, graph)}"
                )
            return zeros
        return {weight.name for weight, name in inside if any(fits(wanted, name) for wanted in self.zero)}


def set_scaled(rewriter: Rewriter, weight: Weight, factor: float) -> None:
    """Multiply a weight, unread, as torch would; PlanError where that is not possible to the bit."""
    data = weight.storage.data
    if isinstance(data, Scaled | Zeros):
        raise PlanError(
            f"{weight.origin} was scaled before; write the network, and start from what is written"
        )
    if data.dtype not in FLOATS:
        raise PlanError(
            f"{weight.origin} is {data.dtype}, which cannot be scaled; its layer is quantised or packed"
        )
    rewriter.set_data(weight.name, with_values(Scaled(data, factor), data))


def set_zero(rewriter: Rewriter, weight: Weight) -> None:
    """Set a weight to zero; PlanError where its zeros would mean something else."""
    if not weight.dtype.startswith(("float8", *FLOATS)):
        raise PlanError(
            f"{weight.origin} is {weight.dtype}, whose zeros may not mean zero; its layer is packed"
        )
    rewriter.set_data(weight.name, Zeros(weight.shape, weight.dtype))


def weights_in(block: Block, graph: Graph) -> list[tuple[Weight, str]]:
    """The weights of a block, each with its name inside the block's child."""
    held = weights_below(graph.weights, (child.path for child in block.children))
    return [(weight, name) for inside in held.values() for name, weight in inside.items() if name]


def fits(wanted: str, name: str) -> bool:
    """Whether whole parts of a dotted name are those wanted."""
    return f".{wanted}." in f".{name}."


def candidates(block: Block, graph: Graph) -> str:
    """The modules in a block, for a message."""
    modules = dict.fromkeys(name.rpartition(".")[0] or name for _, name in weights_in(block, graph))
    shown = list(modules)[:20]
    return ", ".join(shown) + (f" and {len(modules) - 20} more" if len(modules) > 20 else "")


def parse_names(text: str) -> tuple[str, ...]:
    """``o_proj,down_proj`` as names; PlanError for what is none."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise PlanError(
                f"{name!r} in {text!r} is not a name inside a block; write for example o_proj,down_proj"
            )
    return names


def parse_scale(text: str) -> dict[str, float]:
    """``o_proj=0.5,down_proj=0.5`` as factors by name; PlanError for what is neither."""
    factors: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = item.partition("=")
        try:
            factor = float(number) if equals else None
        except ValueError:
            factor = None
        if factor is None or factor - factor != 0:  # infinities and NaNs are no factors
            raise PlanError(f"{item.strip()!r} in {text!r} is not a factor; write for example o_proj=0.5")
        (key,) = parse_names(name)
        if key in factors:
            raise PlanError(f"{key!r} is scaled twice in {text!r}")
        factors[key] = factor
    return factors
