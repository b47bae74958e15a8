"""The pass deletes pruned units, and ElasticIR finds it once the package is installed."""

from __future__ import annotations

import torch
from elastic_ir_drop_sparse import DropSparse

import elastic_ir as eir
from elastic_ir.zoo import cifar_resnet


def test_a_unit_that_is_pruned_whole_goes() -> None:
    model = cifar_resnet(32)
    names = ("layer3.2.conv1.weight", "layer3.2.conv2.weight")
    graph = eir.trace(model, masks={name: torch.zeros_like(model.get_parameter(name)) for name in names})
    thinner = DropSparse().run(graph)
    assert [len(stage) for stage in thinner.stages] == [5, 5, 4]
    assert thinner.lineage()["layer3.2.conv1.weight"] == "layer3.3.conv1.weight"


def test_it_is_found_where_it_is_installed() -> None:
    from elastic_ir.passes import registered

    assert registered().get("drop-sparse", DropSparse) is DropSparse
