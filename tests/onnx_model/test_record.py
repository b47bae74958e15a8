"""What ran over a network is noted in its ONNX file, and read again; a file that nothing has changed stays equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from elastic_ir.passes import Pipeline
from elastic_ir.zoo import cifar_resnet
from tests.discovery.nameless import export_older, write_nameless


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    return export_older(cifar_resnet(14), (torch.randn(1, 3, 32, 32),), folder / "m.onnx")


def record(path: Path) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def test_a_stretched_file_notes_where_its_weights_are_from(path: Path, tmp_path: Path) -> None:
    text = "stretch{to-depth=20 order=interpolate}"
    deeper = Pipeline.parse(text).run(eir.load(path))
    (made,) = eir.save(deeper, tmp_path / "deep.onnx")
    found = record(made)
    assert found["elastic_ir.pipeline"] == [text]
    lineage = found["elastic_ir.lineage"]
    before, after = (
        {tensor.name: tensor.raw_data for tensor in onnx.load(file).graph.initializer}
        for file in (path, made)
    )
    assert all(after[name] == before[origin] for name, origin in lineage.items())
    assert any(name != origin for name, origin in lineage.items())
    read = eir.load(made)
    assert read.history.pipeline == (text,) and read.info.lineage == lineage

    (again,) = eir.save(read, tmp_path / "again.onnx")
    assert onnx.load(again) == onnx.load(made)
    longer = Pipeline.parse("squeeze{to-depth=14}").run(read)
    (back,) = eir.save(longer, tmp_path / "back.onnx")
    assert record(back)["elastic_ir.pipeline"] == [text, "squeeze{to-depth=14}"]


def test_names_in_the_lineage_are_the_files_own(path: Path, tmp_path: Path) -> None:
    bare = write_nameless(path, tmp_path / "nameless.onnx")
    (made,) = eir.save(eir.stretch(eir.load(bare), to_depth=20), tmp_path / "deep.onnx")
    assert "elastic_ir.pipeline" not in record(made)
    lineage = record(made)["elastic_ir.lineage"]
    sources = {tensor.name for tensor in onnx.load(bare).graph.initializer}
    copies = {name for name, origin in lineage.items() if name != origin}
    assert copies and set(lineage.values()) <= sources and not copies & sources


def test_nothing_is_noted_where_nothing_changed(path: Path, tmp_path: Path) -> None:
    (same,) = eir.save(eir.load(path), tmp_path / "same.onnx")
    assert onnx.load(same) == onnx.load(path)
    deeper = eir.stretch(eir.load(path), to_depth=20)
    (made,) = eir.save(deeper, tmp_path / "deep.onnx")
    (back,) = eir.save(eir.squeeze(eir.load(made), to_depth=14), tmp_path / "back.onnx")
    assert onnx.load(back) == onnx.load(path)  # the lineage of the deeper one is gone with its blocks


@pytest.mark.slow
def test_an_export_notes_it_too(tmp_path: Path) -> None:
    text = "stretch{to-depth=20}"
    graph = Pipeline.parse(text).run(eir.trace(cifar_resnet(14)))
    (made,) = eir.save(graph, tmp_path / "m.onnx")
    found = record(made)
    assert found["elastic_ir.pipeline"] == [text]
    assert found["elastic_ir.lineage"]["layer2.2.conv2.weight"] == "layer2.1.conv2.weight"
    assert eir.load(made).history.pipeline == (text,)
    (plain,) = eir.save(cifar_resnet(14), tmp_path / "plain.onnx")
    assert record(plain) == {}


def test_the_command_line_notes_it(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        elastic_ir, ["apply", str(path), "--passes", "stretch{to-depth=20}", "-o", str(tmp_path / "o.onnx")]
    )
    assert done.exit_code == 0, done.output
    assert record(tmp_path / "o.onnx")["elastic_ir.pipeline"] == ["stretch{to-depth=20}"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("elastic_ir.pipeline", "{"),
        ("elastic_ir.pipeline", '{"a": "b"}'),
        ("elastic_ir.pipeline", "[1]"),
        ("elastic_ir.lineage", '["a"]'),
        ("elastic_ir.lineage", '{"a": 1}'),
        ("elastic_ir.lineage", "[" * 100_000),
    ],
)
def test_a_damaged_record(path: Path, tmp_path: Path, key: str, text: str) -> None:
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = key, text
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(SourceError) as caught:
        eir.load(tmp_path / "bad.onnx")
    assert str(caught.value) == (
        f"bad.onnx: {key} in its metadata is damaged; remove the entry to read the network without it"
    )
