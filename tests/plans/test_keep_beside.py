"""What ``--keep-beside`` takes: names of lists, tensors, modules and entries, and what it says of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.cli.app import elastic_ir
from elastic_ir.passes import Pipeline
from elastic_ir.plans.keep_beside import fits, is_kept, listed_names, tensor_is_kept
from elastic_ir.tensors.lazy import ShapeOnly


def bare(**more: tuple[int, ...]) -> eir.Graph:
    """Three layers by their names, and more tensors beside them."""
    shapes = {f"net.layers.{i}.fc.weight": (8, 8) for i in range(3)} | {
        k.replace("__", "."): v for k, v in more.items()
    }
    return graph_of_tensors("bare", {name: ShapeOnly(shape, "float32") for name, shape in shapes.items()})


def folder(path: Path) -> Path:
    """A checkpoint of three layers with a configuration and a file beside it."""
    path.mkdir()
    config = {
        "num_hidden_layers": 3,
        "text_config": {"taps": [0, 2]},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, 1]]}))
    save_file({f"layers.{i}.fc.weight": torch.zeros(8, 8) for i in range(3)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("name", "dotted", "expected"),
    [
        ("norms", "norms", True),
        ("norms", "encoder.norms", True),
        ("encoder.norms", "encoder.norms", True),
        ("norms", "encoder.layer_norms", False),
        ("encoder", "encoder.norms", False),
        ("coder.norms", "encoder.norms", False),
    ],
)
def test_a_name_is_whole_or_the_last_parts(name: str, dotted: str, expected: bool) -> None:
    assert fits(name, dotted) is expected
    assert is_kept(["other", name], dotted) is expected


def test_a_tensor_goes_by_its_module_too() -> None:
    assert tensor_is_kept(["gate"], "moe.gate.weight")
    assert tensor_is_kept(["gate.weight"], "moe.gate.weight")
    assert not tensor_is_kept(["moe"], "moe.gate.weight")
    assert not is_kept([], "moe.gate.weight")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, ()), ("a", ("a",)), ("a, b", ("a", "b")), (["a", "b.c"], ("a", "b.c")), ((), ())],
)
def test_names_are_given_one_or_several(given: str | list[str] | None, expected: tuple[str, ...]) -> None:
    assert listed_names(given) == expected


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(eir.PlanError, match="empty name"):
        eir.stretch(bare(), to_units=4, keep_beside=["scale", ""])


@pytest.mark.parametrize("name", ["scale", "net.layers", "layers", "layers.1.fc", "net.layers.1.fc.weight"])
def test_names_are_remembered(name: str) -> None:
    graph = bare(scale=(9, 9))
    after = eir.stretch(graph, to_units=4, keep_beside=name)
    assert after.edits.keep_beside == (name,)
    assert not graph.edits.keep_beside
    again = eir.squeeze(after, to_units=2, keep_beside=[name, "layers"])
    assert again.edits.keep_beside == tuple(dict.fromkeys((name, "layers")))


def test_what_fits_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(eir.PlanError) as caught:
        eir.stretch(bare(scale=(9, 9)), to_units=4, keep_beside=["scale", "scalr"])
    text = str(caught.value)
    assert "'scalr', which bare does not have" in text
    assert "lists: net.layers;" in text
    assert "did you mean 'scale'" in text


@pytest.mark.parametrize(
    "name",
    ["taps", "text_config.taps", "num_hidden_layers", "generation_config.json", "alignment_heads"],
)
def test_entries_of_a_folder(tmp_path: Path, name: str) -> None:
    graph = eir.load(folder(tmp_path / "source"), headers_only=True)
    assert eir.stretch(graph, to_units=4, keep_beside=[name]).edits.keep_beside == (name,)
    with pytest.raises(eir.PlanError, match=r"entries: num_hidden_layers, text_config, text_config\.taps"):
        eir.squeeze(graph, to_units=2, keep_beside=["no_such"])


@pytest.mark.parametrize(
    "text",
    [
        "stretch{to-units=4 keep-beside=scale}",
        "squeeze{to-units=2 keep-beside=scale,layers}",
        "stack{keep-beside=scale}",
        "depth-upscale{keep-beside=scale}",
    ],
)
def test_passes_take_it_as_a_field(text: str) -> None:
    after = Pipeline.parse(text).run(bare(scale=(9, 9)))
    assert after.edits.keep_beside[0] == "scale"
    with pytest.raises(eir.PlanError, match="names 'other'"):
        Pipeline.parse(text.replace("=scale", "=other")).run(bare(scale=(9, 9)))


@pytest.mark.parametrize(
    "command",
    [pytest.param(["stretch", "--to-units", "4"], marks=pytest.mark.slow), ["squeeze", "--to-units", "2"]],
)
def test_the_command_line(tmp_path: Path, command: list[str]) -> None:
    source, out = folder(tmp_path / "source"), tmp_path / "out"
    arguments = [command[0], str(source), *command[1:], "-o", str(out)]
    wrong = CliRunner().invoke(elastic_ir, [*arguments, "--keep-beside", "taps", "--keep-beside", "no_such"])
    assert wrong.exit_code == 1
    assert "'no_such'" in wrong.output
    assert not out.exists()
    right = CliRunner().invoke(elastic_ir, [*arguments, "--keep-beside", "taps", "--keep-beside", "layers"])
    assert right.exit_code == 0, right.output
    assert out.is_dir()
