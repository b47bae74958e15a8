"""Files of ours whose records are nearly as they should be: each kind of damage is told in one plain line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import ElasticError, SourceError

INDEX, BITS, GRAPH = "elastic_ir/masks.json", "elastic_ir/masks.bin", "elastic_ir/graph.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    blocks = [nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(80, 2)).eval()
    mask = torch.arange(225).reshape(5, 5, 3, 3) % 2
    graph = eir.trace(model, example_inputs=(torch.randn(1, 5, 4, 4),), masks={"0.0.weight": mask})
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    eir.save(graph, path)
    return path.read_bytes()


def changed(saved: bytes, path: Path, record: str, change: Callable[[Any], Any] | None) -> Path:
    """The file with one of its records changed, or without it."""
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content: Any = old.read(info)
            if info.filename.partition("/")[2] == record:
                if change is None:
                    continue
                if record.endswith(".json"):
                    made = change(json.loads(content))
                    content = made if isinstance(made, bytes) else json.dumps(made).encode()
                else:
                    content = change(content)
            new.writestr(zipfile.ZipInfo(info.filename), content)
    return path


def entry(**told: Any) -> Callable[[Any], Any]:
    return lambda index: {"0.0.weight": {**index["0.0.weight"], **told}}


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        (INDEX, None, "masks.json' is missing"),
        (BITS, None, "masks.bin' is missing"),
        (BITS, lambda bits: bits[:-1], "are not where its entry says"),
        (BITS, lambda bits: bits + b"\0", "1 bytes of masks belong to no weight"),
        (BITS, lambda bits: bits[:-1] + b"\xff", "ones behind its end"),
        (INDEX, lambda index: [], "is not a table"),
        (INDEX, lambda index: b"[" * 100_000, "too deep"),
        (INDEX, lambda index: {"nobody.weight": index["0.0.weight"]}, "fits no weight"),
        (INDEX, lambda index: {"0.0.weight": 3}, "no shape, or no dtype"),
        (INDEX, entry(offset=-1), "are not where"),
        (INDEX, entry(offset=2**40), "are not where"),
        (INDEX, entry(offset="0"), "are not where"),
        (INDEX, entry(shape=[5, -5, 3, 3]), "no shape"),
        (INDEX, entry(shape=[2**62, 5]), "are not where"),
        (INDEX, entry(shape=[5, 5, 9]), "has shape"),
        (INDEX, entry(dtype="text"), "no dtype"),
        (GRAPH, lambda graph: b"[" * 100_000 + b"]" * 100_000, "too deep"),
        (GRAPH, lambda graph: b"{\"a\": 1" + b"0" * 5000 + b"}", "4300 digits"),
        (GRAPH, lambda graph: {**graph, "version": "1"}, "not an ElasticIR graph"),
        (GRAPH, lambda graph: {**graph, "version": 99}, "format version 99"),
        (GRAPH, lambda graph: {**graph, "nodes": 3}, "'nodes' of the graph is not a list"),
        (GRAPH, lambda graph: {**graph, "name": ["x"]}, "'name' of the graph is not of type str"),
        (GRAPH, lambda graph: {k: v for k, v in graph.items() if k != "weights"}, "lacks 'weights'"),
        (GRAPH, lambda graph: {**graph, "nodes": graph["nodes"] * 2}, "two nodes"),
        (GRAPH, lambda graph: {**graph, "nodes": graph["nodes"][:-1]}, "one output node"),
        (GRAPH, lambda graph: {**graph, "nodes": [{**n, "args": 3} for n in graph["nodes"]]}, "are not arguments"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_told(
    saved: bytes, tmp_path: Path, record: str, change: Callable[[Any], Any] | None, said: str
) -> None:
    path = changed(saved, tmp_path / "model.pt", record, change)
    with pytest.raises(ElasticError) as told:
        eir.load(path)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_a_network_that_makes_no_sense_is_the_files_fault(saved: bytes, tmp_path: Path) -> None:
    def odd(graph: Any) -> Any:
        for node in graph["nodes"]:
            pairs = node["attributes"]["dict"]
            pairs[:] = [[key, "none" if key == "padding_mode" else value] for key, value in pairs]
        return {key: value for key, value in graph.items() if key not in ("module", "inputs")}

    path = changed(saved, tmp_path / "model.pt", GRAPH, odd)
    with pytest.raises(SourceError, match=r"model\.pt holds a network that cannot be followed"):
        eir.load(path).to_module()


def test_recipes_that_are_too_deep_or_grow(tmp_path: Path) -> None:
    from elastic_ir.passes.infra.yaml_nodes import compose

    growing = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)])
    texts = {
        "a: " + "[" * 5000: "brackets in one another",
        "- " * 3000 + "x": "too deep",
        growing: "aliases written out",
        "a: &a [*a]": "aliases written out",
        "a" * (1 << 21): "KiB",
    }
    for text, said in texts.items():
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(SourceError, match=said):
            compose(tmp_path / "r.yaml")


def test_a_pickled_module_that_makes_no_sense(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[1]._buffers = {7: torch.zeros(4)}  # type: ignore[dict-item]
    torch.save(module, tmp_path / "module.pt")
    with pytest.raises(SourceError, match=r"module\.pt holds a network that cannot be followed \(TypeError"):
        eir.load(tmp_path / "module.pt")
