"""U-Nets: stretching inside a stage keeps the long skips right, and a skip from inside a stage stays on its block."""

from __future__ import annotations

import itertools

import pytest
import torch

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.discovery.depth import longest_path
from elastic_ir.plans.plan import Drop, Order
from tests.discovery.unets import UNet, unet

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("form", "join", "frontend"),
    [*itertools.product(("sequential", "list"), ("cat", "add"), ("fx",)), ("list", "cat", "export")],
)
@pytest.mark.everyday(2)
def test_stages_stretch_between_long_skips(form: str, join: str, frontend: Frontend) -> None:
    source = unet(form=form, join=join)
    graph = eir.trace(source, IMAGES, frontend=frontend)
    found = [(stage.name, len(stage), stage.entry, stage.transition) for stage in graph.stages]
    assert found == [
        ("encoder.0", 2, None, None),
        ("encoder.1", 3, None, "down.0"),
        ("encoder.2", 2, None, "down.1"),
        ("decoder.1", 2, None, "up.1"),
        ("decoder.0", 2, None, "up.0"),
    ]
    assert (graph.structure.stem, graph.structure.head) == (("stem",), ("head",))
    ways: tuple[tuple[Order, Drop], ...] = (("append", "tail"), ("interpolate", "even"))
    for order, drop in ways:
        deeper = eir.stretch(graph, to_stages=(4, 5, 2, 3, 4), order=order)
        native = unet((4, 5, 2), (4, 3), form=form, join=join)
        native.load_state_dict(deeper.state_dict())
        made = deeper.to_module()
        assert type(made) is UNet
        assert torch.equal(native(IMAGES), made(IMAGES))
        assert deeper.depth == eir.trace(made, IMAGES, frontend=frontend).depth == graph.depth + 14
        back = eir.squeeze(deeper, to_stages=(2, 3, 2, 2, 2), drop=drop)
        assert str(back) == str(graph)
        assert torch.equal(back.to_module()(IMAGES), source(IMAGES))


@pytest.mark.parametrize(
    ("middle", "stage", "count", "now"),
    [
        (1, "encoder.1:1", 3, 3),  # clones before the block that the skip is taken from
        (1, "encoder.1:2", 4, 1),  # clones behind it
        (1, "encoder.0", 4, 1),  # clones in another stage
        (2, "encoder.1", 5, 4),  # the skip is taken from the stage's end, but by number
    ],
)
def test_a_skip_from_inside_a_stage_stays_on_its_block(middle: int, stage: str, count: int, now: int) -> None:
    source = unet(form="list", middle=middle)
    graph = eir.trace(source, IMAGES)
    deeper = eir.stretch(graph, to_stages={stage: count})
    encoder = (4, 3, 2) if stage == "encoder.0" else (2, 5, 2)
    native = unet(encoder, form="list", middle=now)
    native.load_state_dict(deeper.state_dict())
    made = deeper.to_module()
    assert torch.equal(native(IMAGES), made(IMAGES))
    assert isinstance(made, UNet) == (now == middle)  # else its own forward would take the skip from a clone
    assert deeper.depth == longest_path(eir.trace(made, IMAGES))  # a GraphModule's operations have no scopes
    back = eir.squeeze(deeper, to_stages={s.name: len(s) for s in graph.stages})
    assert torch.equal(back.to_module()(IMAGES), source(IMAGES))


@pytest.mark.slow
def test_where_a_skip_would_move_the_exported_operations_take_the_place_of_the_class() -> None:
    source = unet(form="list", middle=1)
    graph = eir.trace(source, IMAGES, frontend="export")
    deeper = eir.stretch(graph, to_stages={"encoder.1:1": 3})
    made = deeper.to_module()
    assert isinstance(made, torch.fx.GraphModule)
    assert "gets a skip from one of the units of 'encoder.1'" in str(deeper.emitted.replaced)
    back = eir.squeeze(deeper, to_stages={"encoder.1:1": 1}).to_module()
    assert torch.allclose(back(IMAGES), source(IMAGES))
    behind = eir.stretch(graph, to_stages={"encoder.1:2": 4})
    native = unet((2, 5, 2), form="list", middle=1)
    native.load_state_dict(behind.state_dict())
    assert torch.equal(native(IMAGES), behind.to_module()(IMAGES))
