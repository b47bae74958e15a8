"""By names alone: layers beside numbered attributes, among other layers of a list, inside of unlike blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.tensors.lazy import ShapeOnly

Shapes = dict[str, tuple[int, ...]]


def stages(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The stages of names, which come sorted, as in a file of safetensors."""
    graph = graph_of_tensors("bare", {name: ShapeOnly(shapes[name], "float32") for name in sorted(shapes)})
    return {stage.name: len(stage) for stage in graph.stages}


def layer(path: str, width: int = 8) -> Shapes:
    held = dict.fromkeys(("q", "k", "v", "out"), (width, width)) | {"up": (16, width), "down": (width, 16)}
    return {f"{path}.{name}.{role}": shape[: 2 if role == "weight" else 1]
            for name, shape in held.items() for role in ("weight", "bias")}  # fmt: skip


def layers(path: str, count: int, width: int = 8) -> Shapes:
    return {name: shape for at in range(count) for name, shape in layer(f"{path}.{at}", width).items()}


def test_convolutions_before_a_tower_are_its_stem() -> None:
    """Two of them are alike, as in Qwen3-Omni's audio tower."""
    stem: Shapes = {"tower.conv2d1.weight": (6, 1, 3, 3)}
    stem |= {f"tower.conv2d{at}.weight": (6, 6, 3, 3) for at in (2, 3)}
    assert stages({**stem, **layers("tower.layers", 4)}) == {"tower.layers": 4}


def test_a_recurrent_module_among_the_layers_of_a_list() -> None:
    """Encodec's encoder is one list of convolutions and blocks, with a module of two recurrent layers near its end."""
    shapes: Shapes = {"encoder.0.conv.weight": (4, 1, 7), "encoder.1.conv.weight": (8, 4, 4)}
    for number in range(2):
        for kind in ("ih", "hh"):
            shapes[f"encoder.2.lstm.weight_{kind}_l{number}"] = (32, 8)
            shapes[f"encoder.2.lstm.bias_{kind}_l{number}"] = (32,)
    shapes["encoder.3.conv.weight"] = (5, 8, 7)
    assert list(stages(shapes).values()) == [2]


def test_lists_inside_of_blocks_of_no_stage() -> None:
    """MobileViTV2's stages hold a list of layers each, and more beside it than in it; no two are alike."""
    shapes: Shapes = {}
    for at, (width, count) in enumerate([(8, 2), (12, 3), (16, 2)]):
        path = f"encoder.{at}"
        for name in ("a_in", "b_local", "c_project", "downsample.expand", "downsample.reduce"):
            for part in ("convolution.weight", "normalization.weight", "normalization.bias"):
                shapes[f"{path}.{name}.{part}"] = (width, width, 1, 1) if part.startswith("c") else (width,)
        shapes |= layers(f"{path}.transformer.layer", count, width)
    assert stages(shapes) == {f"encoder.{at}.transformer.layer": n for at, n in enumerate([2, 3, 2])}


def test_the_last_block_of_a_list_that_ends_in_the_width_it_began_with() -> None:
    """A postnet's first layer reads a spectrogram and its last one writes one: both stand at the ends of one stage."""
    widths = [3, 8, 8, 8, 3]
    shapes: Shapes = {}
    for at, (into, out) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"a.postnet.{at}.conv.weight": (out, into, 5), f"a.postnet.{at}.norm.weight": (out,)}
    assert stages({**shapes, **layers("b.vocoder", 3)}) == {"a.postnet": 4, "b.vocoder": 3}
    wider = shapes | {"a.postnet.3.conv.weight": (5, 8, 5), "a.postnet.3.norm.weight": (5,)}
    assert stages({**wider, **layers("b.vocoder", 3)}) == {"a.postnet:1": 3, "a.postnet:2": 1, "b.vocoder": 3}


def test_a_last_block_that_gives_another_width_stays_the_last() -> None:
    """Of WaveNet's last layer nothing goes on, so that it gives half as much; its copy in the middle would be wrong."""
    shapes: Shapes = {f"skips.{at}.weight": (16 if at < 4 else 8, 8, 1) for at in range(5)}
    graph = graph_of_tensors("bare", {name: ShapeOnly(shape, "float32") for name, shape in shapes.items()})
    (stage,) = graph.stages
    assert stage.exit is not None and [len(stage), stage.exit.path] == [5, "skips.4"]
    deeper = eir.stretch(graph, to_stages=[7])
    assert [weight.shape[0] for weight in deeper.weights.values()] == [16] * 6 + [8]


def test_a_list_with_something_else_beside_its_numbers() -> None:
    """transformers writes a table of frequencies of all of ESM's layers by one name, ``layer.*``."""
    shapes = layers("layer", 3) | {"layer.*.rotary.inv_freq": (4,)}
    assert stages(shapes) == {"layer": 3}
    with pytest.raises(eir.StructureError):  # it may be of the list, too
        stages({**shapes, **layer("layer.last")})


def test_what_a_tower_is_called_is_not_what_its_layers_are() -> None:
    """Phi-4's image tower lies in ``embed_tokens_extend``; tables that are numbered are tables all the same."""
    tower = {name.replace(".q.", ".attn.q.").replace(".up.", ".mlp.up.").replace(".down.", ".mlp.down."): shape
             for name, shape in layers("embed.image.layers", 3).items()}  # fmt: skip
    tables: Shapes = {f"embeddings.{at}.weight": (20, 8) for at in range(3)}
    assert stages({**tower, **tables, **layers("text.layers", 2)}) == {
        "embed.image.layers": 3,
        "text.layers": 2,
    }


def test_every_third_layer_has_wider_heads() -> None:
    """Gemma 4's layers with full attention are as wide as the others between which they stand, inside wider."""
    shapes: Shapes = {}
    for at in range(6):
        shapes |= layer(f"layers.{at}")
        if at % 3 == 2:
            shapes |= {f"layers.{at}.{name}.weight": (16, 8) for name in ("q", "k", "v")}
            shapes[f"layers.{at}.out.weight"] = (8, 16)
    graph = graph_of_tensors("bare", {name: ShapeOnly(shapes[name], "float32") for name in sorted(shapes)})
    assert [(len(stage), stage.period, stage.pinned) for stage in graph.stages] == [(6, 3, 0)]


def test_two_series_before_a_tower() -> None:
    """``conv2d1`` to ``conv2d3`` and ``proj1``, ``proj2`` beside ``layers``, at the root of the names."""
    shapes: Shapes = {f"conv2d{at}.weight": (6, 6, 3, 3) for at in (1, 2, 3)}
    shapes |= {f"proj{at}.weight": (8, 8) for at in (1, 2)}
    assert stages({**shapes, **layers("layers", 4)}) == {"layers": 4}
