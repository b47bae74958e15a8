"""``passes --new NAME``: a file with a pass and a file with its test, to begin from.

It is the pass of docs/writing-passes.md, which shows what is written here; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from elastic_ir.cli import output
from elastic_ir.errors import PlanError
from elastic_ir.formats.files import atomic_output

PASS = Template('''\
"""The pass $name."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Unit
from elastic_ir.passes import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class $kind(Pass):
    """Delete free units whose masks have pruned more than a share of their weights."""

    name: ClassVar[str] = "$name"

    above: float = 0.95  #: a unit with a larger share of zeros is deleted

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for stage in graph.stages:
            for unit in stage.units:  # a tuple made before anything is deleted
                if sparsity_of(unit, graph) > self.above:
                    rewriter.delete_unit(unit)


def sparsity_of(unit: Unit, graph: Graph) -> float:
    """The share of zeros among the prunable weights of a unit."""
    paths = tuple(f"{child.path}." for block in unit.blocks for child in block.children)
    weights = [w for name, w in graph.weights.items() if w.prunable and name.startswith(paths)]
    zeros = sum(w.mask.zeros for w in weights if w.mask is not None)
    sizes = sum(w.mask.size if w.mask is not None else prod(w.shape) for w in weights)
    return zeros / sizes if sizes else 0.0
''')
TEST = Template('''\
"""The pass $name: what it changes, and that the result runs."""

from __future__ import annotations

import elastic_ir as eir
import torch
from elastic_ir.zoo import cifar_resnet
from $module import $kind


def pruned() -> eir.Graph:
    """A network with one block that is pruned whole."""
    model = cifar_resnet(32)
    names = ("layer3.2.conv1.weight", "layer3.2.conv2.weight")
    masks = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    return eir.trace(model, (torch.zeros(1, 3, 32, 32),), masks=masks)


def test_it_deletes_what_is_pruned() -> None:
    graph = pruned()
    thinner = $kind().run(graph)
    assert [len(stage) for stage in graph.stages] == [5, 5, 5]
    assert [len(stage) for stage in thinner.stages] == [5, 5, 4]
    assert thinner.lineage()["layer3.2.conv1.weight"] == "layer3.3.conv1.weight"
    thinner.to_module()  # every block of it runs


def test_it_leaves_the_others() -> None:
    assert [len(stage) for stage in $kind(above=1.0).run(pruned()).stages] == [5, 5, 5]
''')


def write_new_pass(name: str) -> list[Path]:
    """Write ``NAME.py`` and ``test_NAME.py`` into the working folder, and return their paths.

    Raises PlanError for what is no name of a pass, or one that is taken, OutputError where a file is there.
    """
    from elastic_ir.passes import registered

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PlanError(
            f"{name!r} is no name of a pass; write lower-case words joined by hyphens, drop-sparse"
        )
    if name in registered():
        raise PlanError(f"there is a pass {name} already; choose another name")
    module = name.replace("-", "_")
    kind = "".join(word.capitalize() for word in name.split("-"))
    paths = [Path(f"{module}.py"), Path(f"test_{module}.py")]
    output.refuse_existing(*paths, other="choose another name")
    for path, template in zip(paths, (PASS, TEST), strict=True):
        with atomic_output(path) as made:
            made.write_text(template.substitute(name=name, kind=kind, module=module), "utf-8")
    return paths
