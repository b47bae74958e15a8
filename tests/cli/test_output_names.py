"""The names that results get: no source needs to be read for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from elastic_ir.cli.output import default_output, size_of
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure


def graph(depth: int | None, *counts: int) -> Graph:
    """A graph of which only the structure is filled in."""
    stages = []
    for place, count in enumerate(counts):
        blocks = [Block([Child(f"s{place}.{i}", f"s{place}.{i}")]) for i in range(count)]
        stages.append(Stage(f"s{place}", (Container(f"s{place}", "", 0),), blocks[0], blocks[1:]))
    made = Graph("network")
    made._structure = Structure(stages, depth, "names")
    return made


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("model.pt", "model-depth56.pt"),
        ("model.pth", "model-depth56.pth"),
        ("runs/a.b/model.safetensors", "runs/a.b/model-depth56.safetensors"),
        ("model-depth20.pt", "model-depth56.pt"),
        ("model-depth21.pt", "model-depth21-depth56.pt"),  # not this network's own tag
        ("pytorch_model.bin", "pytorch_model-depth56.pt"),
        ("timm:resnet50", "resnet50-depth56.pt"),
        ("timm:resnet50.a1_in1k", "resnet50.a1_in1k-depth56.pt"),
        ("timm:hf-hub:org/some-net", "org-some-net-depth56.pt"),
        ("my.package:make", "make-depth56.pt"),
        ("folder", "folder-depth56"),
        ("folder/", "folder-depth56"),
    ],
)
def test_default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert default_output(source, graph(20, 3), graph(56, 9)) == Path(expected)


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "llama"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert default_output(".", graph(20, 3), graph(56, 9)) == tmp_path / "llama-depth56"


def test_where_the_depth_is_not_known() -> None:
    assert default_output("model.pt", graph(None, 3, 4), graph(None, 5, 6)) == Path("model-5-6.pt")
    assert default_output("model-3-4.pt", graph(None, 3, 4), graph(None, 5, 6)) == Path("model-5-6.pt")


def test_size_of(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "inner" / "b").write_bytes(b"345")
    assert size_of(tmp_path) == 5
    assert size_of(tmp_path / "a") == 2
