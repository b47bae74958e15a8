"""Targets: how a wanted depth is spread, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

import elastic_ir as eir
from elastic_ir.zoo import cifar_resnet, cifar_vgg


def traced(name: str) -> eir.Graph:
    with torch.device("meta"):
        return eir.trace(torchvision.models.get_model(name, weights=None))


def counts(graph: eir.Graph) -> list[int]:
    return [len(stage) for stage in graph.stages]


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("resnet18", 34, [3, 4, 6, 3]),
        ("resnet18", 26, [2, 3, 4, 3]),
        ("resnet50", 101, [3, 4, 23, 3]),
        ("resnet50", 152, [3, 8, 36, 3]),
        ("resnet50", 200, [3, 24, 36, 3]),
        ("vgg13", 16, [2, 2, 3, 3, 3]),
        ("vgg13_bn", 19, [2, 2, 4, 4, 4]),
        ("mobilenet_v2", 59, [1, 2, 4, 5, 3, 3, 1]),
        ("vit_b_16", 58, [14]),
    ],
)
def test_depth_is_spread_as_the_family_does(name: str, depth: int, expected: list[int]) -> None:
    deeper = eir.stretch(traced(name), to_depth=depth)
    assert (counts(deeper), deeper.depth) == (expected, depth)


def test_bottlenecks_of_26_layers() -> None:
    assert counts(eir.squeeze(traced("resnet50"), to_depth=26)) == [2, 2, 2, 2]


def test_equal_stages_stay_equal() -> None:
    with torch.device("meta"):
        graph = eir.trace(cifar_resnet(20))
    assert counts(eir.stretch(graph, to_depth=110)) == [18, 18, 18]
    assert counts(eir.squeeze(graph, to_depth=14)) == [2, 2, 2]
    assert counts(eir.stretch(graph, to_depth=22)) == [
        4,
        3,
        3,
    ]  # the largest remainder, ties to the earlier stage
    with torch.device("meta"):
        assert counts(eir.stretch(eir.trace(cifar_vgg(13)), to_depth=17)) == [2, 2, 4, 4, 4]


def test_counts_by_name_and_by_example() -> None:
    graph = traced("resnet18")
    assert counts(eir.stretch(graph, to_stages={"layer3": 6})) == [2, 2, 6, 2]
    assert counts(eir.stretch(graph, to_stages="layer1=3,layer4=3")) == [3, 2, 2, 3]
    assert counts(eir.stretch(graph, like=traced("resnet34"))) == [3, 4, 6, 3]
    assert counts(eir.squeeze(traced("resnet34"), like=graph)) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "state the target in exactly one way"),
        ({"to_depth": 34, "to_units": 3}, r"given: to_depth, to_units"),
        ({"to_depth": 33}, "nearest depths are 32 and 34"),
        ({"to_depth": 16}, "shallower than the source .*: that is a squeeze, use 'squeeze'"),
        ({"to_stages": (2, 2)}, "2 counts are given, the network has 4 stages: layer1=2"),
        ({"to_stages": (2, 2, 2, 0)}, "stage 'layer4' cannot have 0 blocks: at least its entry"),
        ({"to_units": 5}, "to_units is for networks of one stage"),
        ({"plan": [[0, 1, 2], [0, 1], [0, 1], [0, 1]]}, "stage 'layer1' has no block 2"),
        ({"plan": [[1], [0, 1], [0, 1], [0, 1]]}, "drops block 0, its entry"),
        ({"plan": "0,1|0,1"}, "the plan has 2 lists, the network 4 stages"),
        ({"to_depth": 15}, r"depth 15 is shallower than the source \(depth 18\): that is a squeeze"),
        ({"to_depth": "23"}, "to_depth is a whole number, not '23'"),
        ({"to_units": 2.5}, "to_units is a whole number, not 2.5"),
        ({"to_stages": [3, "4", 6, 3]}, "a count in to_stages is a whole number, not '4'"),
        ({"to_stages": {"layer1": "3"}}, r"to_stages\['layer1'\] is a whole number, not '3'"),
        ({"to_stages": 3}, "to_stages is a count of blocks for each stage, not 3"),
        ({"to_stages": [3]}, "1 count is given, the network has 4 stages"),
        ({"plan": "0,1"}, "the plan has 1 list, the network 4 stages"),
        ({"to_stages": "layer1:3"}, "'layer1:3' in 'layer1:3' is not a number of blocks"),
        ({"to_stages": "3-6"}, "'3-6' in '3-6' is not a number of blocks; write one for each stage"),
        ({"to_stages": "layer1=x,layer2=3"}, "is not a number of blocks for a stage"),
    ],
)
def test_stretches_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(eir.PlanError, match=message):
        eir.stretch(traced("resnet18"), **options)


def test_squeezes_that_are_refused() -> None:
    graph = traced("resnet18")
    with pytest.raises(eir.PlanError, match="that is a stretch, use 'stretch'"):
        eir.squeeze(graph, to_depth=34)
    with pytest.raises(
        eir.PlanError, match=r"depth 33 is deeper than the source \(depth 18\): that is a stretch"
    ):
        eir.squeeze(graph, to_depth=33)
    with pytest.raises(
        eir.PlanError, match="give a graph, of trace\\(module\\) or load\\(source\\), not a str"
    ):
        eir.squeeze("model.pt", to_depth=5)  # type: ignore[arg-type]
    with pytest.raises(eir.PlanError, match="not possible"):
        eir.squeeze(graph, to_depth=5)
    with pytest.raises(eir.PlanError, match="drop is tail, even or a list of blocks, not 'head'"):
        eir.squeeze(graph, to_depth=18, drop="head")  # type: ignore[arg-type]  # said even where nothing is dropped
    with pytest.raises(eir.StructureError, match="there is no stage 'layer9'; the stages are 'layer1'"):
        eir.squeeze(graph, to_stages={"layer9": 1})


def test_transformers_are_pointed_to_units() -> None:
    with pytest.raises(
        eir.PlanError, match=r"nearest depths are 50 and 54\. Count its 12 units instead: --to-units N"
    ):
        eir.stretch(traced("vit_b_16"), to_depth=51)


def test_unlike_networks_are_refused_by_stage() -> None:
    with pytest.raises(eir.PlanError, match=r"stage 1 cannot be matched: the source has layer1 \(2 blocks\)"):
        eir.stretch(traced("resnet18"), like=traced("resnet50"))
    with pytest.raises(eir.PlanError, match="the reference nothing"):
        eir.stretch(traced("resnet18"), like=eir.trace(cifar_resnet(20, width=64)))


def test_the_paper_s_mapping_applies_to_every_stage() -> None:
    with torch.device("meta"):
        graph = eir.trace(cifar_resnet(20))
    deeper = eir.stretch(graph, plan="0:0;1:1,2;2:3,4")
    assert counts(deeper) == [5, 5, 5]
    assert deeper.lineage()["layer2.4.conv1.weight"] == "layer2.2.conv1.weight"
    mixed = eir.stretch(graph, plan="0,1,2,2,1|0,2|0,2,1")  # one grows, one shrinks, one is re-ordered
    assert counts(mixed) == [5, 2, 3]
    assert mixed.lineage()["layer3.1.conv1.weight"] == "layer3.2.conv1.weight"
