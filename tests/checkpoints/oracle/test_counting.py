"""Entries that count several lists, as a U-Net's do: found by building, named as a target, stated together.

The library here is a stand-in whose network has a way down and a way up; test_unets.py has those of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.config.depth import Stack, reindexed
from elastic_ir.checkpoints.libraries.library import Library
from elastic_ir.checkpoints.oracle.counting import counts
from elastic_ir.checkpoints.write import plan_checkpoint
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.ir.counts import Count


class Layer(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(wide)
        self.one, self.two = nn.Linear(wide, out), nn.Linear(out, out)


class Net(nn.Module):
    """Two blocks down of ``per`` layers each, two up of one more, whose first and last read other channels."""

    def __init__(self, per: int | list[int], widths: tuple[int, ...], inner: int = 1) -> None:
        super().__init__()
        pers = [per] * len(widths) if isinstance(per, int) else per
        if len(pers) != len(widths):
            raise ValueError("as many as there are widths")
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for width, count in zip(widths, pers, strict=True):
            block = nn.Module()
            block.layers = nn.ModuleList(Layer(before if at == 0 else width, width) for at in range(count))
            block.mixers = nn.ModuleList(Layer(width, width) for _ in range(count))
            self.down.append(block)
            before = width
        ways = list(zip(reversed(widths), reversed(pers), strict=True))
        for place, (width, count) in enumerate(ways):
            skip = ways[min(place + 1, len(ways) - 1)][0]
            block = nn.Module()
            block.layers = nn.ModuleList(
                Layer((before if at == 0 else width) + (skip if at == count else width), width)
                for at in range(count + 1)
            )
            self.up.append(block)
            before = width


class Unets(Library):
    """The library of that network."""

    name, extra, imports, code, count = "unets", "unets", "json", "tests.", "per"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return "widths" in config

    def network(self, config: Mapping[str, Any], where: str, device: str = "meta") -> Any:
        try:
            with torch.device(device):
                return Net(config.get("per", 2), tuple(config["widths"]))
        except (TypeError, ValueError) as error:
            raise SourceError(f"{where}: {error}") from error


CONFIG: dict[str, Any] = {"widths": [8, 12, 20], "per": 2, "heads": 2, "groups": 3}


def by_name(config: dict[str, Any]) -> dict[str, Count]:
    stated = {"per": 2, **config}
    return {count.name: count for count in counts(Unets(), config, stated)}


def test_one_number_counts_lists_of_unequal_lengths() -> None:
    found = by_name(CONFIG)
    assert set(found) == {"per", "per.0", "per.1", "per.2"}
    lists = {one.name: (one.members, one.free) for one in found["per"].lists}
    assert lists["down.0.layers"] == (2, (0, 1)) and lists["down.0.mixers"] == (2, (0, 1))
    assert lists["down.1.layers"] == (2, (1,))  # the first one reads the width before
    assert lists["up.0.layers"] == (3, (0, 1))  # the last one reads another width
    assert lists["up.1.layers"] == (3, (1,))  # and the first one, too
    assert lists["up.2.layers"] == (3, (1, 2))
    assert {one.name for one in found["per.0"].lists} == {"down.0.layers", "down.0.mixers", "up.2.layers"}
    assert found["per.0"].outermost == [2, 2, 2]


def test_a_list_of_numbers_and_a_number_that_is_not_stated() -> None:
    listed = by_name({**CONFIG, "per": [2, 1, 2]})
    assert set(listed) == {"per.0", "per.1", "per.2"}
    none = {one.name: one for one in listed["per.1"].lists}["up.1.layers"]
    assert (none.members, none.free) == (2, ()) and none.why == (
        "layer 1 would have norm.weight [24], as none of them has"
    )
    unstated = by_name({"widths": [8, 12, 20]})
    assert "per" in unstated and unstated["per"].value == 2


def folder(path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> eir.Graph:
    """A folder of such a network, read by its headers; the answer is given in this process."""
    from tests.checkpoints.oracle.test_libraries import Here

    monkeypatch.setattr("elastic_ir.checkpoints.libraries.find.LIBRARIES", (Unets(),))
    monkeypatch.setattr("elastic_ir.checkpoints.oracle.comparison.started", Here)
    config = {**CONFIG, **changes}
    path.mkdir()
    save_file(Unets().network(config, "", "cpu").state_dict(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return eir.load(path, headers_only=True)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("changes", "how", "per"),
    [
        ({}, {"to_units": 3}, 3),
        ({}, {"to_stages": {"per": 4}}, 4),
        ({}, {"to_stages": "per.0=3,per.2=4"}, [3, 2, 4]),
        ({"per": [2, 1, 2]}, {"to_stages": {"per.0": 3}}, [3, 1, 2]),
    ],
)
def test_all_lists_change_with_the_entry_that_counts_them(
    changes: dict[str, Any], how: dict[str, Any], per: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = folder(tmp_path / "source", monkeypatch, **changes)
    deeper = eir.stretch(graph, **how)
    plan = plan_checkpoint(deeper)
    assert plan.doubt is None and plan.config["per"] == per
    shapes = {name: tuple(weight.shape) for name, weight in deeper.weights.items()}
    built = Unets().network({**CONFIG, "per": per}, "").state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in built.items()}
    for stack in plan.stacks:  # a layer and what is stepped through with it are of one source
        if stack.path.endswith(".layers") and stack.path.startswith("down"):
            other = next(one for one in plan.stacks if one.path == stack.path.replace("layers", "mixers"))
            assert other.order == stack.order
    made = eir.save(deeper, tmp_path / "out")[0]
    assert json.loads((made / "config.json").read_text())["per"] == per


@pytest.mark.slow
def test_squeezing_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folder(tmp_path / "source", monkeypatch, per=3)
    plan = plan_checkpoint(eir.squeeze(graph, to_stages={"per": 2}))
    assert plan.config["per"] == 2
    assert {stack.path: stack.order for stack in plan.stacks}["up.1.layers"] == (0, 1, 3)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("changes", "how", "said"),
    [
        ({"per": 1}, {"to_units": 2}, r"per counts down.0.layers, .*, and of down.1.layers \(1 layer\) none can be "
         r"copied or left out: layer 1 would have norm.weight \[12\]"),
        ({"per": [2, 1, 2]}, {"to_units": 3}, r"several, of which each may be named .*: per.0=2, per.1=1, per.2=2"),
        ({}, {"to_stages": "per=3,per.0=3"}, "several of the entries that are named count down.0.layers"),
        ({}, {"to_stages": "per=3,down.0.layers=3"}, "per is an entry of the configuration and down.0.layers is none"),
        ({}, {"to_stages": "per=1"}, "is shallower than the source"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    changes: dict[str, Any], how: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = folder(tmp_path / "source", monkeypatch, **changes)
    with pytest.raises(PlanError, match=said):
        eir.stretch(graph, **how)


def test_one_list_alone_is_refused_with_the_target_that_changes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = folder(tmp_path / "source", monkeypatch, widths=[8, 8])
    deeper = eir.stretch(graph, to_stages={"up.1.layers": 4}, at=["up.1.layers"])
    with pytest.raises(
        PlanError, match=r"config.json's per counts up.1.layers together with .*: --to-stages per=N"
    ):
        eir.save(deeper, tmp_path / "out")


def test_a_count_that_says_which_stack_it_counts() -> None:
    """By its name alone: the words that it has more are those of the stack."""
    both = [Stack(f"{head}transformer_blocks", "", 0, 5, (0, 1, 2, 3, 4)) for head in ("", "single_")]
    deeper = Stack(both[1].path, "", 0, 5, (0, 1, 2, 3, 4, 0))
    config = {"num_layers": 5, "num_single_layers": 5}
    names = [f"{stack.path}.0.weight" for stack in both]
    assert reindexed(config, [both[0], deeper], names)[0] == {"num_layers": 5, "num_single_layers": 6}
    with pytest.raises(PlanError, match="no entry that counts"):
        reindexed({"num_dual_layers": 5}, [deeper], names)
