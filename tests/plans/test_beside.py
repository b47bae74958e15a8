"""What lies beside a stack, read from names and shapes: lists in step with it, tensors indexed by it, and neither."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import elastic_ir as eir
from elastic_ir.plans.beside import Surroundings
from tests.plans.beside_networks import (
    INDEPENDENT,
    JOINED,
    LISTS,
    TENSORS,
    Net,
    blocks,
    by_names,
    experts,
    linears,
    listed,
    norms,
    values,
)


def one_more(graph: eir.Graph, name: str) -> list[list[int]]:
    """A plan that has the last unit of one stage twice."""
    plan = [list(range(len(stage))) for stage in graph.stages]
    at = [stage.name for stage in graph.stages].index(name)
    plan[at] += plan[at][-(graph.stages[at].period or 1) :]
    return plan


def one_fewer(graph: eir.Graph, name: str) -> list[list[int]]:
    """A plan that leaves the last unit of one stage out."""
    return [list(range(len(stage) - (stage.period or 1) * (stage.name == name))) for stage in graph.stages]


def graph_of(make: Callable[[], nn.Module], sort: bool) -> eir.Graph:
    graph = by_names(make(), sort=sort)
    unknown = any(stage.period is None for stage in graph.stages)
    return graph.with_unit(1) if unknown else graph


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_lists_in_step_are_not_left_behind(name: str, sort: bool) -> None:
    make, stage, left = LISTS[name]
    graph = graph_of(make, sort)
    plan = one_more(graph, stage)
    with pytest.raises(eir.PlanError, match="names alone do not show") as caught:
        eir.stretch(graph, plan=plan)
    text = str(caught.value)
    assert text.startswith(repr(stage))
    assert all(f"{one!r} (" in text and f"--keep-beside {one}" in text for one in left)
    with pytest.raises(eir.PlanError, match="names alone do not show"):
        eir.squeeze(graph, plan=one_fewer(graph, stage))
    kept = eir.stretch(graph, plan=plan, keep_beside=left)
    for one in left:
        assert [n for n in kept.weights if n.startswith(one)] == [
            n for n in graph.weights if n.startswith(one)
        ]


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("name", JOINED)
def test_norms_beside_bare_layers_change_with_them(name: str, sort: bool) -> None:
    """Convolutions in one list and as many norms of their channels in another are blocks of two slots."""
    make, stage, (joined,) = JOINED[name]
    graph = graph_of(make, sort)
    assert len(graph.stages[0].containers) == 2
    after = eir.stretch(graph, plan=one_more(graph, stage))
    lineage = {new: old for new, old in after.lineage().items() if new != old}
    assert {new for new in lineage if new.startswith(joined)} and {
        new for new in lineage if new.startswith(stage)
    }
    numbers = [
        [int(found) for found in re.findall(r"\d+", f"{new} {old}")[:2]] for new, old in lineage.items()
    ]
    assert {new - old for new, old in numbers} == {1}
    before = eir.squeeze(after, plan=[list(range(len(graph.stages[0])))])
    assert list(before.weights) == list(graph.weights)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_what_a_list_sizes_is_not_left_behind(name: str, sort: bool) -> None:
    make, stage, sized = TENSORS[name]
    graph = graph_of(make, sort)
    plan = one_more(graph, stage)
    with pytest.raises(eir.PlanError, match="seems to be indexed by them") as caught:
        eir.stretch(graph, plan=plan)
    assert all(f"--keep-beside {tensor}" in str(caught.value) for tensor, _ in sized)
    kept = eir.stretch(graph, plan=plan, keep_beside=[tensor for tensor, _ in sized])
    assert all(kept.weights[tensor].shape == graph.weights[tensor].shape for tensor, _ in sized)


@pytest.mark.parametrize("name", TENSORS)
def test_the_axis_is_told(name: str) -> None:
    make, stage, sized = TENSORS[name]
    graph = graph_of(make, False)
    around = Surroundings(graph.weights)
    stack = around.of(graph.structure.stage(stage).container)
    assert stack is not None
    found = around.tensors_indexed_by(stack)
    assert sorted((one.name, one.axis) for one in found) == sorted(sized)
    assert all(graph.weights[one.name].shape[one.axis] == one.extent for one in found)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_stages_change_alone(name: str, sort: bool) -> None:
    graph = graph_of(INDEPENDENT[name], sort)
    for stage in graph.stages:
        if not stage.blocks:
            continue
        after = eir.stretch(graph, plan=one_more(graph, stage.name))
        assert len(after.structure.stage(stage.name)) > len(stage)


@pytest.mark.slow
@given(
    count=st.integers(2, 9),
    near=st.integers(-1, 1),
    width=st.integers(11, 64),
    sort=st.booleans(),
)
def test_norms_beside_layers_of_any_count_and_width(count: int, near: int, width: int, sort: bool) -> None:
    """As many, one fewer or one more; of another width, or two more, they are another thing's."""

    def graph(norms: int, channels: int) -> eir.Graph:
        layers = listed(count, lambda _: Net(fc=nn.Linear(width, width), norm=nn.LayerNorm(width)))
        return by_names(Net(layers=layers, norms=listed(norms, lambda _: nn.LayerNorm(channels))), sort=sort)

    plan = [[*range(count), count - 1]]
    if count + near > 1:
        with pytest.raises(eir.PlanError, match="'norms'"):
            eir.stretch(graph(count + near, width), plan=plan)
    for other in (graph(count + near, width + 1), graph(count + 2, width)):
        assert len(eir.stretch(other, plan=plan).stages[0]) == count + 1


def test_lists_that_change_alike_are_let_through() -> None:
    graph = by_names(Net(convs=linears(3), skips=linears(3)))
    after = eir.stretch(graph, to_stages=(5, 5))
    assert sum(name.endswith("weight") for name in after.weights) == 10
    with pytest.raises(eir.PlanError, match="'skips'"):
        eir.stretch(graph, plan=[[0, 1, 2, 1], [0, 1, 2, 2]])
    with pytest.raises(eir.PlanError, match="'skips'"):
        eir.stretch(graph, plan=[[0, 1, 2, 1], [0, 1, 2, 2, 2]])
    for name in ("convs", "skips"):
        assert len(eir.stretch(graph, plan=[[0, 1, 2, 1], [0, 1, 2, 2]], keep_beside=name).stages[0]) == 4


def test_two_of_four_lists_that_change_alike_leave_the_others_behind() -> None:
    make, _, _ = LISTS["four lists"]
    graph = by_names(make())
    with pytest.raises(eir.PlanError) as caught:
        eir.stretch(graph, to_stages=(4, 4))
    assert "'layer_norm1' (3) and 'layer_norm2' (3)" in str(caught.value)
    assert "'ffns'" not in str(caught.value)


def test_the_same_count_in_another_order_is_a_change() -> None:
    graph = by_names(Net(layers=blocks(3), norms=norms(3)))
    with pytest.raises(eir.PlanError, match="'norms'"):
        eir.stretch(graph, plan=[[0, 0, 2]])
    assert len(eir.stretch(graph, plan=[[0, 1, 2]]).stages[0]) == 3


def test_layers_of_another_network_are_a_change() -> None:
    one, other = (by_names(Net(layers=blocks(3), norms=norms(3))) for _ in range(2))
    with pytest.raises(eir.PlanError, match="'norms'"):
        eir.stretch(one, plan="0,b/1,2", others={"b": other})
    mixed = eir.stretch(one, plan="0,b/1,2", others={"b": other}, keep_beside="norms")
    assert mixed.lineage()["layers.1.linear1.weight"] == "b/layers.1.linear1.weight"


def test_a_reference_shows_what_belongs_together() -> None:
    """Norms that the deeper network has as few of are independent; norms that it has more of are missed by name."""
    graph = by_names(Net(layers=blocks(3), norms=norms(3)))
    after = eir.stretch(graph, like=by_names(Net(layers=blocks(4), norms=norms(3))))
    assert len(after.stages[0]) == 4
    with pytest.raises(eir.PlanError, match=r"norms\.3\.weight"):
        eir.stretch(graph, like=by_names(Net(layers=blocks(4), norms=norms(4))))


@pytest.mark.parametrize("text", ["stack", "depth-upscale{drop=1}", "stack{times=3}"])
def test_other_passes_have_the_same_check_and_way_out(text: str) -> None:
    from elastic_ir.passes import Pipeline

    graph = by_names(Net(layers=blocks(3), norms=norms(3)))
    with pytest.raises(eir.PlanError, match="'norms'"):
        Pipeline.parse(text).run(graph)
    name, _, options = text.partition("{")
    kept = f"{name}{{{options.rstrip('}')} keep-beside=norms}}"
    assert len(Pipeline.parse(kept).run(graph).stages[0]) > 3


# -- numbered attributes, and lists inside of blocks -------------------------------------------------------------------


def conv(inner: int, out: int, size: int) -> nn.Module:
    return Net(conv=nn.Conv2d(inner, out, size, bias=False), bn=nn.BatchNorm2d(out))


class Split(nn.Module):
    """Three convolutions that a forward names, and blocks beside them (a cross-stage partial network's)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = conv(16, 8, 1), conv(16, 8, 1), conv(16, 16, 1)
        self.m = listed(count, lambda _: Net(cv1=conv(8, 8, 1), cv2=conv(8, 8, 3)))


@pytest.mark.parametrize("count", [1, 3])
def test_attributes_that_a_forward_names_are_no_list(count: int) -> None:
    graph = by_names(nn.Sequential(conv(3, 16, 3), Split(count), conv(16, 32, 3)))
    assert [(stage.name, len(stage)) for stage in graph.stages] == [("1", 3)]
    refusal = r"'1\.cv' are 3 attributes around the blocks of '1\.m'.*--keep-beside 1\.m"
    with pytest.raises(eir.PlanError, match=refusal):
        eir.stretch(graph, to_units=4)
    with pytest.raises(eir.PlanError, match=refusal):
        eir.squeeze(graph, to_units=2)
    assert len(eir.stretch(graph, to_units=4, keep_beside="m").stages[0]) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_frequencies_of_positions_as_layers_are_not_the_layers(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    frequencies = (1 / 10000 ** (torch.arange(4) / 4)).to(dtype)
    network = Net(layers=blocks(4), rotary=Net(inv_freq=frequencies))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    assert len(eir.stretch(eir.load(tmp_path / "net.pt"), to_units=6).stages[0]) == 6
    frequencies[-1] *= 2
    torch.save(network.state_dict(), tmp_path / "net.pt")
    with pytest.raises(eir.PlanError, match=r"rotary\.inv_freq \[4\] beside it has 4 entries"):
        eir.stretch(eir.load(tmp_path / "net.pt"), to_units=6)


@pytest.mark.parametrize("by_plan", [False, True])
def test_experts_inside_of_layers_are_no_stage(by_plan: bool) -> None:
    graph = by_names(Net(layers=listed(3, lambda _: Net(moe=experts(4, gate=nn.Linear(16, 4))))))
    name = "layers.1.moe.experts"
    plan = {name: [0, 1, 2, 3, 0]} if by_plan else None
    with pytest.raises(eir.StructureError) as caught:
        eir.stretch(graph, plan=plan, to_stages=None if by_plan else {name: 5})
    text = str(caught.value)
    assert "there is no stage 'layers.1.moe.experts'; the stages are 'layers'" in text
    assert (
        "lies inside 'layers.1', and sizes layers.1.moe.gate.weight [4, 16], so that it is not changed alone"
        in text
    )


def test_another_list_inside_of_layers_is_a_part_of_them() -> None:
    graph = by_names(Net(layers=listed(3, lambda _: Net(fcs=linears(2)))))
    with pytest.raises(
        eir.StructureError, match=r"'layers\.0\.fcs' lies inside 'layers\.0', and is a part of that"
    ):
        eir.stretch(graph, to_stages={"fcs": 3})
    with pytest.raises(eir.StructureError, match=r"there is no stage 'other'; the stages are 'layers'$"):
        eir.stretch(graph, to_stages={"other": 3})


# -- files, and traces -------------------------------------------------------------------------------------------------


class Stepped(nn.Module):
    """Two lists that are stepped through together, or, where ``apart``, one after the other."""

    def __init__(self, count: int, apart: bool = False) -> None:
        super().__init__()
        self.apart = apart
        self.convs = linears(count)
        self.norms = listed(count, lambda _: nn.LayerNorm(16))
        self.out = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.apart:
            for conv in self.convs:
                x = torch.relu(conv(x))
            for norm in self.norms:
                x = norm(x)
            return torch.as_tensor(self.out(x))
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = torch.relu(norm(conv(x)))
        return torch.as_tensor(self.out(x))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_without_its_network(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    state = Stepped(3).state_dict()
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    graph = eir.load(path)
    eir.save(eir.stretch(graph, to_units=4), tmp_path / f"out{suffix}")
    made = eir.load(tmp_path / f"out{suffix}")
    assert made.weights.keys() == Stepped(4).state_dict().keys()


def test_a_trace_shows_that_lists_are_independent(tmp_path: Path) -> None:
    graph = eir.trace(Stepped(3, apart=True).eval(), (torch.randn(2, 16),))
    deeper = eir.stretch(graph, to_stages={"convs": 4})
    eir.save(deeper, tmp_path / "deep.pt")
    assert len([name for name in torch.load(tmp_path / "deep.pt", weights_only=True) if "convs" in name]) == 8


@pytest.mark.parametrize(("change", "plan"), [("stretch", [0, 1, 2, 2]), ("squeeze", [0, 1])])
def test_what_a_trace_shows_in_step_is_written_in_step(tmp_path: Path, change: str, plan: list[int]) -> None:
    graph = eir.trace(Stepped(3).eval(), (torch.randn(2, 16),))
    eir.save(getattr(eir, change)(graph, plan=[plan]), tmp_path / "net.pt")
    Stepped(len(plan)).load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))


@pytest.mark.slow
def test_a_folder_is_asked_for_its_lists_and_not_for_its_tensors(tmp_path: Path) -> None:
    """What a folder's tensors are, its own network says when it is written."""
    import json

    from safetensors.torch import save_file

    for name, model in (
        ("lists", Net(layers=blocks(3), norms=listed(3, lambda _: nn.LayerNorm(16)))),
        ("weights", Net(layers=blocks(3), layer_weights=values(4))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
    with pytest.raises(eir.PlanError, match="'norms'"):
        eir.stretch(eir.load(tmp_path / "lists", headers_only=True), to_units=4)
    assert len(eir.stretch(eir.load(tmp_path / "weights", headers_only=True), to_units=4).stages[0]) == 4
