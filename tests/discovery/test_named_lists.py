"""Lists chosen by their names: an inner level, an outer one, several one after the other; shown, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.discovery.named_lists import other_lists
from elastic_ir.errors import PlanError, StructureError


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Group(nn.Module):
    """Blocks with a layer behind them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(*(Block() for _ in range(count))), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.last(self.body(x))
        return result


class Groups(nn.Module):
    """Groups of blocks, as image restoration has them."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        self.groups = nn.Sequential(*map(Group, counts))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.groups(x))
        return result


class Module(nn.Module):
    """Two lists of blocks that run side by side, and what goes from one to the other, as HRNet's modules are."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(blocks))) for width in (8, 4)
        )
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide, narrow = self.branches[0](x), self.branches[1](y)
        return wide + self.up(narrow), narrow + self.down(wide)


class TwoStreams(nn.Module):
    """Modules of two streams."""

    def __init__(self, modules: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 4), nn.Linear(12, 3)
        self.stage = nn.ModuleList(Module(blocks) for _ in range(modules))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        for module in self.stage:
            x, y = module(x, y)
        result: torch.Tensor = self.head(torch.cat([x, y], -1))
        return result


def traced(network: nn.Module) -> eir.Graph:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return eir.trace(network.eval(), torch.randn(2, 8))


def counts(graph: eir.Graph) -> dict[str, int]:
    return {stage.name: len(stage) for stage in graph.stages}


def loads(graph: eir.Graph, native: nn.Module) -> bool:
    """Whether a graph's module is the native one: of its class, with its names, and with its outputs."""
    made = graph.to_module()
    native.load_state_dict(made.state_dict(), strict=True)
    x = torch.randn(3, 8)
    return type(made) is type(native) and torch.equal(made.eval()(x), native.eval()(x))


def test_the_outer_level_is_found_and_the_inner_one_is_there_by_name() -> None:
    graph = traced(Groups(3, 3))
    assert counts(graph) == {"groups": 2}
    assert counts(graph.at("groups.1.body")) == {"groups.1.body": 3}
    assert counts(graph.at("groups.*.body")) == {"groups.0.body": 3, "groups.1.body": 3}
    assert counts(graph) == {"groups": 2}, "the graph itself stays as it was"
    assert [str(one) for one in other_lists(graph)] == ["groups.*.body (2 lists of 3 blocks)"]
    assert [one.name for one in other_lists(graph.at("groups.*.body"))] == ["groups"]


def test_inner_lists_change_in_the_class_of_the_network() -> None:
    graph = traced(Groups(3, 3))
    assert loads(eir.stretch(graph, at="groups.1.body", to_units=5), Groups(3, 5))
    assert loads(eir.squeeze(graph, at="groups.*.body", to_stages=(2, 1)), Groups(2, 1))
    assert loads(eir.stretch(graph, at=["groups.1.body", "groups.0.body"], to_stages=(4, 5)), Groups(4, 5))


def test_levels_change_one_after_the_other() -> None:
    graph = traced(Groups(3, 3))
    mask = torch.ones(16, 8)
    mask[::2] = 0
    graph = eir.trace(graph.to_module(), torch.randn(2, 8), masks={"groups.0.body.0.up.weight": mask})
    outer = eir.stretch(graph, to_units=3)
    inner = eir.stretch(outer, at="groups.2.body", to_units=4)
    assert loads(inner, Groups(3, 3, 4))
    assert inner.lineage()["groups.2.body.3.up.weight"] == "groups.0.body.0.up.weight"
    assert torch.equal(inner.masks()["groups.2.body.3.up.weight"], mask)
    back = eir.squeeze(eir.squeeze(inner, at="groups", to_units=2), at="groups.*.body", to_stages=(3, 3))
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), graph.state_dict().values(), strict=True)
    )
    assert loads(back, Groups(3, 3))


@pytest.mark.slow
def test_a_file_written_after_two_levels_is_read_again(tmp_path: Path) -> None:
    graph = eir.stretch(eir.stretch(traced(Groups(2, 2)), to_units=3), at="groups.0.body", to_units=4)
    for name in ("deeper.pt", "deeper.onnx"):
        eir.save(graph, tmp_path / name)
        again = eir.load(tmp_path / name)
        assert counts(again.at("groups.0.body")) == {"groups.0.body": 4}, name


@pytest.mark.slow
@pytest.mark.parametrize("order", ["append", "interpolate"])
def test_a_reference_may_have_other_counts_at_both_levels(order: str) -> None:
    small, large = traced(TwoStreams(2, 2)), traced(TwoStreams(4, 3))
    assert "stage.0.branches.0" in counts(small), "streams side by side have their lists as stages"
    assert loads(eir.stretch(small, like=large, order=order), TwoStreams(4, 3))  # type: ignore[arg-type]
    assert loads(eir.squeeze(large, like=small), TwoStreams(2, 2))
    with pytest.raises(PlanError, match="is deeper than the source"):
        eir.squeeze(small, like=large)


def test_by_names_alone(tmp_path: Path) -> None:
    torch.save(Groups(3, 3).state_dict(), tmp_path / "bare.pt")
    graph = eir.load(tmp_path / "bare.pt")
    deeper = eir.stretch(graph, at="groups.*.body", to_stages=(4, 5))
    Groups(4, 5).load_state_dict(deeper.state_dict(), strict=True)
    assert [one.name for one in other_lists(graph)] == ["groups.*.body"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["bodies"],
            r"Groups has no list of blocks 'bodies'; those that repeat are groups, groups\.\*\.body$",
        ),
        (
            ["groups", "groups.0.body"],
            "'groups.0.body' lies in a block of 'groups'; change one of them, and then",
        ),
        (["groups.*.body", ""], "has no list of blocks ''"),
    ],
)
def test_names_that_are_no_levels(names: list[str], reason: str) -> None:
    with pytest.raises(StructureError, match=reason):
        traced(Groups(3, 3)).at(*names)


def test_a_list_of_which_nothing_can_be_cloned() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5)), *(Block(5) for _ in range(3)), nn.Linear(5, 2)
    )
    with pytest.raises(StructureError, match="no block of '0' has one shape before and behind it"):
        traced(network).at("0")


def test_the_command_line(tmp_path: Path) -> None:
    torch.save(Groups(3, 3).state_dict(), tmp_path / "bare.pt")
    runner = CliRunner()
    shown = runner.invoke(elastic_ir, ["inspect", str(tmp_path / "bare.pt")]).output
    assert "groups.*.body (2 lists of 3 blocks); --at 'groups.*.body' changes it instead" in shown
    made = runner.invoke(
        elastic_ir,
        [
            "stretch",
            str(tmp_path / "bare.pt"),
            "--at",
            "groups.1.body",
            "--to-units",
            "5",
            "-o",
            str(tmp_path / "out.pt"),
        ],
    )
    assert made.exit_code == 0, made.output
    Groups(3, 5).load_state_dict(torch.load(tmp_path / "out.pt"), strict=True)
    shown = runner.invoke(elastic_ir, ["inspect", str(tmp_path / "out.pt"), "--at", "groups.1.body"]).output
    assert "groups.1.body" in shown and "changes it instead" not in shown
