"""``passes --new NAME``: a file with a pass and a file with its test, to begin from (docs/writing-passes.md)."""

from __future__ import annotations

import re
from pathlib import Path

from elastic_ir.cli import output
from elastic_ir.errors import PlanError
from elastic_ir.formats.files import atomic_output

PASS = '''\
"""The pass {name}."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class {kind}(Pass):
    """Delete the last free unit of every stage that has more than a number of them."""

    name: ClassVar[str] = "{name}"

    keep: int = 1  #: free units that every stage keeps

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for stage in graph.stages:
            if len(stage.units) > self.keep:
                rewriter.delete_unit(stage.units[-1])
'''
TEST = '''\
"""The pass {name}: what it changes, and that the result runs."""

from __future__ import annotations

import elastic_ir as eir
import torch
from elastic_ir.zoo import cifar_resnet
from {module} import {kind}


def test_it_deletes_the_last_units() -> None:
    graph = eir.trace(cifar_resnet(20), (torch.zeros(1, 3, 32, 32),))
    changed = {kind}(keep=1).run(graph)
    assert [len(stage) for stage in graph.stages] == [3, 3, 3]
    assert [len(stage) for stage in changed.stages] == [2, 2, 2]
    changed.to_module()  # every block of it runs


def test_it_leaves_what_it_has_to_keep() -> None:
    graph = eir.trace(cifar_resnet(20), (torch.zeros(1, 3, 32, 32),))
    assert [len(stage) for stage in {kind}(keep=2).run(graph).stages] == [3, 3, 3]
'''


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
            made.write_text(template.format(name=name, kind=kind, module=module), "utf-8")
    return paths
