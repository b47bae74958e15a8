"""Streamed folders of transformers' families: loaded by from_pretrained, equal to what tracing and stretching makes."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import elastic_ir as eir
from elastic_ir.errors import PlanError
from elastic_ir.plans.plan import Order
from tests.networks.transformers_families import FAMILIES, make


@cache
def module(name: str) -> Any:
    return make(name)


@cache
def traced(name: str) -> eir.Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eir.trace(module(name))


Way = Order | Literal["squeeze"]


def resized(graph: eir.Graph, way: Way) -> eir.Graph:
    """One unit more or less in every stage; the last stage two, so that stacks side by side end apart."""
    steps = [(stage.period or 1) * (1 + (index > 0)) for index, stage in enumerate(graph.stages)]
    if way == "squeeze":
        halves = [
            max(len(stage) - step, 1 if step == 1 or not stage.period or stage.period == 1 else stage.period)
            for stage, step in zip(graph.stages, steps, strict=True)
        ]
        return eir.squeeze(graph, to_stages=halves)
    sizes = [len(stage) + step for stage, step in zip(graph.stages, steps, strict=True)]
    return eir.stretch(graph, to_stages=sizes, order=way)


def by_name(graph: eir.Graph) -> list[int]:
    """The stages in the order of their names: names alone do not show whether encoder or decoder runs first."""
    return sorted(range(len(graph.stages)), key=lambda index: graph.stages[index].name)


@pytest.mark.parametrize("way", ["append", "squeeze"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.everyday(4)
def test_from_pretrained_loads_what_tracing_makes(name: str, way: Way, tmp_path: Path) -> None:
    module(name).save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    if any(stage.period is None for stage in graph.stages):
        with pytest.raises(PlanError, match="2 blocks make a unit"):  # as the network shows, once it is asked
            resized(graph, way)
        graph = graph.with_unit(2)
    after = resized(graph, way)
    eir.save(after, tmp_path / "target", check=False)
    loaded, report = type(module(name)).from_pretrained(tmp_path / "target", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    plans = [[int(block) for block in after.resequenced.plan[index]] for index in by_name(graph)]
    twin = eir.stretch(traced(name), plan=_in_order(traced(name), plans))
    expected = twin.to_module()
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {
        n: t.shape for n, t in expected.state_dict().items()
    }
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in loaded.state_dict().items())
    inputs = twin.origin.inputs
    assert inputs is not None
    with torch.no_grad():
        outputs = [m.eval()(*inputs.args, **inputs.kwargs)[0] for m in (loaded, expected)]
    torch.testing.assert_close(*outputs)  # as the loaded tensors are aligned, the last bit may differ
    assert said(loaded.config) == said(expected.config)


@pytest.mark.slow
def test_masks_go_into_a_folder_and_come_back(tmp_path: Path) -> None:
    """By the model's own save_pretrained and as a stream: the same bits, and both ways read them."""
    dice = torch.Generator().manual_seed(0)
    name, weight = next((n, w) for n, w in traced("llama").weights.items() if w.prunable)
    mask = torch.rand(weight.shape, generator=dice) < 0.5
    graph = eir.trace(module("llama"), masks={name: mask})
    eir.save(graph, tmp_path / "written", check=False)
    for headers_only in (True, False):
        read = eir.load(tmp_path / "written", headers_only=headers_only)
        assert read.masks().keys() == {name} and torch.equal(read.masks()[name].bool(), mask)
        assert not read.state_dict()[name][~mask].any()
    eir.save(eir.load(tmp_path / "written", headers_only=True), tmp_path / "streamed", check=False)
    files = [(tmp_path / folder / "model.masks.safetensors") for folder in ("written", "streamed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def said(config: Any) -> Any:
    """What a configuration says of the network; not where it came from, nor the type its numbers are kept in."""
    data = config if isinstance(config, dict) else config.to_dict()
    away = ("_name_or_path", "architectures", "dtype", "transformers_version")
    return {
        key: said(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if key not in away
    }


def _in_order(graph: eir.Graph, plans: list[list[int]]) -> list[list[int]]:
    ordered: list[list[int]] = [[] for _ in plans]
    for index, plan in zip(by_name(graph), plans, strict=True):
        ordered[index] = plan
    return ordered
