"""How many blocks are made: a plan with a slip in it is refused before it fills the memory, and more can be allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import PlanError, SourceError, StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pipeline
from elastic_ir.plans.plan import parse_plan
from elastic_ir.safety import limits


@pytest.fixture
def source(tmp_path: Path) -> Path:
    state = {f"layers.{i}.{n}.weight": np.ones((2, 2), np.float32) for i in range(3) for n in "ab"}
    save_file(state, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize(
    "make",
    [
        lambda g, **more: eir.stretch(g, to_units=20_000, **more),
        lambda g, **more: eir.stretch(g, to_stages=[20_000], **more),
        lambda g, **more: eir.stretch(g, to_stages={"layers": 20_000}, **more),
        lambda g, **more: eir.stretch(g, to_units=20_000, order="interpolate", replicate=[1], **more),
        lambda g, **more: eir.stretch(g, plan=[[0, 1, *[2] * 19_998]], **more),
        lambda g, **more: eir.squeeze(g, plan="0," + "1,2," * 9_999 + "2", **more),
    ],
)
def test_more_than_are_allowed_are_refused(source: Path, make: Callable[..., Graph]) -> None:
    graph = eir.load(source)
    with pytest.raises(PlanError, match=r"up to 10,000 are made; .*\(--max-blocks \d+, in Python"):
        make(graph)
    with pytest.raises(PlanError, match="up to 19,999 are made"):
        make(graph, max_blocks=19_999)


def test_as_many_as_are_allowed_are_made(source: Path) -> None:
    graph = eir.load(source)
    for count in (4, 7):
        with pytest.raises(PlanError, match="up to 3 are made"):
            eir.stretch(graph, to_units=count, max_blocks=3)
        assert len(eir.stretch(graph, to_units=count, max_blocks=count).stages[0]) == count
    # what is there already is never too much
    assert len(eir.squeeze(graph, to_units=2, max_blocks=1).stages[0]) == 2
    with limits.allowing_blocks(5):
        assert len(Pipeline.parse("stretch{to-units=5}").run(graph).stages[0]) == 5
        for text in ("stretch{to-units=6}", "stack{times=2}", "depth-upscale{drop=0}"):
            with pytest.raises(PlanError, match="6 blocks, and up to 5 are made"):
                Pipeline.parse(text).run(graph)


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_a_range_is_made_only_where_it_is_short(first: int, length: int) -> None:
    text = f"{first}-{first + length}"
    if length < limits.BLOCKS:
        assert parse_plan(text) == [list(range(first, first + length + 1))]
    else:
        for said in (text, f"b/{text}", f"0:{text}", f"layers={text}"):
            with pytest.raises(PlanError, match="are made; if so many are meant"):
                parse_plan(said)


def run(*words: object) -> Any:
    return CliRunner().invoke(elastic_ir, [str(word) for word in words])


def test_the_command_line_allows_them(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    refused = run("stretch", source, "--to-units", 12, "--max-blocks", 11, "-o", out)
    assert (refused.exit_code, refused.output.count("--max-blocks 12")) == (1, 1)
    refused = run("stretch", source, "--max-blocks", 11, "--plan", "0-2,2-12", "-o", out)
    assert (refused.exit_code, "13 blocks" in refused.output or "14 blocks" in refused.output) == (2, True)
    assert run("stretch", source, "--to-units", 12, "--max-blocks", 12, "-o", out).exit_code == 0
    passes = ("apply", source, "--passes", "stack{times=4}", "-o", tmp_path / "b.safetensors")
    assert run(*passes, "--max-blocks", 11).exit_code == 1
    assert run(*passes, "--max-blocks", 12).exit_code == 0
    assert (
        run("stretch", source, "--to-units", 12, "-o", tmp_path / "c.safetensors").exit_code == 0
    )  # it is not kept


def test_numbers_with_gaps(tmp_path: Path) -> None:
    """What is made follows what is there: a small gap is an empty place, a huge one no list of layers."""
    for number in (limits.GAPS + 5, 10**9, 10**17):
        names = [f"layers.{i}.weight" for i in (0, 1, number)]
        save_file({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "m.safetensors")
        graph = eir.load(tmp_path / "m.safetensors")
        with pytest.raises(StructureError, match=f"from 0 to {number}, and only 3 are there"):
            graph.stages  # noqa: B018
        eir.save(graph, tmp_path / "out.safetensors")
        assert sorted(eir.load(tmp_path / "out.safetensors").weights) == sorted(names)


def test_names_that_no_network_has(tmp_path: Path) -> None:
    for name, said in (("a." * 100 + "w", "101 parts"), ("w" * 10_001, "10001 letters")):
        save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
        with pytest.raises(SourceError, match=said):
            eir.load(tmp_path / "m.safetensors")
    save_file({"a." * 99 + "w": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    assert len(eir.load(tmp_path / "m.safetensors").weights) == 1
