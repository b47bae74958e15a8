"""What a layer is beyond names and shapes, read from its modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.oracle.kinds import alike, differences, heads, kinds, of_depth
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import EmitError, StructureError
from tests.checkpoints.oracle.test_comparison import compared
from tests.networks.transformers_families import SMALL


class Layer(nn.Module):
    def __init__(self, number: int, window: int | None = None, dropped: float = 0.0, **more: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.drop_path = nn.Dropout(dropped) if dropped else nn.Identity()
        self.layer_idx = number
        self.scale = 1 / (number + 1)
        self.window = window
        vars(self).update(more)


class Net(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(layers)


def net(windows: list[int | None], **more: Any) -> Net:
    return Net(*(Layer(number, window, number / 8, **more) for number, window in enumerate(windows)))


def told(source: nn.Module, target: nn.Module, order: list[int], path: str = "body.layers") -> list[str]:
    lists = kinds(source)
    stacks = [Stack(path, "", 0, len(lists["body.layers."]), tuple(order))]
    assert heads(lists, stacks) == {path: "body.layers."}
    return differences(lists, kinds(target), stacks, heads(lists, stacks))


@pytest.mark.parametrize("path", ["body.layers", "layers", "net.body.layers"])
def test_a_layer_of_another_kind(path: str) -> None:
    """Its number, a scale and a rate of dropping that go by it may differ."""
    source = net([4, None, 4, None])
    assert not told(source, net([4, None, 4, None, 4, None]), [0, 1, 2, 3, 2, 3], path)
    assert told(source, net([4, None, 4, None, 4, None]), [0, 1, 2, 3, 3, 2], path) == [
        f"layer 4 of {path}, a copy of layer 3, would be of another kind: window is 4, not None",
        f"layer 5 of {path}, a copy of layer 2, would be of another kind: window is None, not 4",
    ]


def test_what_a_layer_refers_to() -> None:
    """The number of the layer whose keys it shares, and a list of all layers that each holds."""

    def sharing(numbers: list[int], count: int) -> Net:
        layers = [
            Layer(n, shares_layer=one, kinds=["a"] * count, layers=count) for n, one in enumerate(numbers)
        ]
        return Net(*layers)

    source = sharing([0, 1, 1, 1], 4)
    assert not told(source, sharing([0, 1, 2, 2, 2, 2], 6), [0, 0, 1, 2, 2, 3])
    assert "shares_layer is 0, not 1" in told(source, sharing([0, 1, 0, 0, 0, 0], 6), [0, 0, 1, 2, 2, 3])[0]


def test_a_module_of_another_class_or_none() -> None:
    source, target = net([1, 1]), net([1, 1, 1])
    last: Any = target.get_submodule("body.layers.2")
    last.linear = nn.Identity()
    assert told(source, target, [0, 1, 1])[0].endswith("linear is a Identity, not a Linear")
    last.linear, last.gate = nn.Linear(2, 2), nn.Linear(2, 2)
    assert told(source, target, [0, 1, 1])[0].endswith("gate is in one of them only")


def test_kinds_as_numbers() -> None:
    """Two layers whose one value is 0 and 1 may be a plain and a shifted one."""
    assert alike(kinds(net([4, None, 4, None]))["body.layers."], 4) == [0, 1, 0, 1]
    assert alike(kinds(net([4, 4, 4, 4]))["body.layers."], 3) == [0, 0, 0]
    assert alike(kinds(Net(Layer(0, shift=0), Layer(1, shift=1)))["body.layers."], 2) == [0, 1]
    assert heads(kinds(net([1, 1])), [Stack("other", "", 0, 2, (0, 1))]) == {}


def test_numbers_in_texts_and_in_steps() -> None:
    """Two caches for each layer, under a name that holds the layer's number."""

    def cached(count: int) -> Net:
        return Net(*(Layer(number, cache=2 * number + 1, key=f"conv.{number}") for number in range(count)))

    assert not told(cached(3), cached(4), [0, 1, 2, 1])
    wrong = cached(4)
    vars(wrong.get_submodule("body.layers.3"))["key"] = "conv.1"
    assert not told(cached(3), wrong, [0, 1, 2, 1])
    vars(wrong.get_submodule("body.layers.3"))["key"] = "other.3"
    assert "key is 'other.3', not 'conv.1'" in told(cached(3), wrong, [0, 1, 2, 1])[0]


def test_a_constant_of_the_depth() -> None:
    """MiniCPM3 scales each layer's result by the root of their number: no layer is of another kind for it."""

    def scaled(count: int, *others: float) -> Net:
        factors = [*others, *([count**-0.5] * (count - len(others)))]
        return Net(*(Layer(number, factor=factor) for number, factor in enumerate(factors)))

    assert not told(scaled(4), scaled(5), [0, 1, 2, 3, 3])
    lists = kinds(scaled(4)), kinds(scaled(5))
    stacks = [Stack("body.layers", "", 0, 4, (0, 1, 2, 3, 3))]
    assert of_depth(*lists, stacks, {"body.layers": "body.layers."}) == [
        "body.layers.factor is 0.447214 with 5 layers, 0.5 with 4"
    ]
    assert "factor is 0.7, not 0.5" in told(scaled(4), scaled(5, 0.7), [0, 1, 2, 3, 3])[0]
    assert "factor is 0.447" in told(scaled(4, 0.7), scaled(5), [0, 1, 2, 3, 3])[0]
    assert (
        "factor is 1.0, not 0.5"
        in told(scaled(4), Net(*(Layer(n, factor=1.0) for n in range(4))), [1, 0, 2, 3])[0]
    )


def test_a_list_is_of_the_stack_that_is_nearest_by_name() -> None:
    """The text model's layers have another name in the network, and end as the vision model's do."""
    built = {"encoder.text.layers.": net([1, 1]), "encoder.vision.encoder.layers.": net([1, 1])}
    lists = {head: kinds(one)["body.layers."] for head, one in built.items()}
    stacks = [Stack(path, "", 0, 2, (0, 1)) for path in ("encoder.layers", "encoder.vision.encoder.layers")]
    assert heads(lists, stacks) == {"encoder.vision.encoder.layers": "encoder.vision.encoder.layers."}


# -- folders -----------------------------------------------------------------------------------------------------------


def swin(folder: Path, depths: list[int]) -> eir.Graph:
    settings = t.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=depths, num_heads=[2] * len(depths), window_size=2
    )
    t.SwinModel(settings).save_pretrained(folder)
    return eir.load(folder, headers_only=True)


@pytest.mark.parametrize(
    "depths", [[2, 2, 4], *(pytest.param(one, marks=pytest.mark.slow) for one in ([2, 2], [4, 4]))]
)
@pytest.mark.slow
def test_the_network_shows_units_that_names_do_not(depths: list[int], tmp_path: Path) -> None:
    graph = swin(tmp_path / "source", depths)
    assert all(stage.period is None for stage in graph.stages)
    more = [depths[0] + 2, *depths[1:]]
    deeper = eir.stretch(graph, to_stages=more)
    assert [len(stage) for stage in deeper.stages] == more
    assert compared(deeper).kind == "SwinModel"
    with pytest.raises(eir.ElasticError, match="2 blocks make a unit"):
        eir.stretch(graph, to_stages=[depths[0] + 1, *depths[1:]])


def test_a_network_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = swin(tmp_path / "source", [2, 2])
    monkeypatch.setattr(
        "elastic_ir.checkpoints.libraries.of_transformers.Transformers.imports", "no_such_library"
    )
    with pytest.raises(
        StructureError, match="names alone do not show how many blocks make a unit; pass --unit N"
    ):
        eir.stretch(graph, to_stages=[4, 2])


def test_kinds_that_a_configuration_gives_by_number(tmp_path: Path) -> None:
    """Every second layer has a window by its number alone, so a copy may not stand in another's place."""
    settings = t.Qwen2Config(
        **SMALL, num_key_value_heads=2, num_hidden_layers=4, use_sliding_window=True, sliding_window=4,
        max_window_layers=2,
    )  # fmt: skip
    torch.manual_seed(0)
    t.Qwen2ForCausalLM(settings).save_pretrained(tmp_path / "source")
    _without(tmp_path / "source", "layer_types")
    found = compared(eir.stretch(eir.load(tmp_path / "source", headers_only=True), plan="0,1,0,1,2,3"))
    assert found.config is not None and found.config["max_window_layers"] == 4
    with pytest.raises(
        EmitError, match=r"layer 1 of model.layers, a copy of layer 2, would be of another kind"
    ):
        compared(eir.stretch(eir.load(tmp_path / "source", headers_only=True), plan="0,2,1,2,3"))


def _without(folder: Path, entry: str) -> None:
    import json

    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop(entry, None)
    path.write_text(json.dumps(config))


def test_a_text_may_hold_other_numbers_than_the_layers() -> None:
    """``levels.0.layers.2``: which of the numbers is the layer's, all layers' texts show."""

    def named(count: int, level: int = 0) -> Net:
        return Net(*(Layer(at, cache_key=f"levels.{level}.layers.{at}") for at in range(count)))

    assert not told(named(2), named(4), [0, 1, 0, 1])
    assert alike(kinds(named(2))["body.layers."], 2) == [0, 0]
    assert told(named(2), named(4, level=1), [0, 1, 0, 1])[0].endswith(
        "cache_key is 'levels.1.layers.0', not 'levels.0.layers.0'"
    )
