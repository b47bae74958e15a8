"""Files of ours read without torch: what is built late is as if built at once, and what is unsound shows at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.formats.torch_zip import read_zip_records
from elastic_ir.frontends import described
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

CODE = """
import sys
from elastic_ir.cli.app import elastic_ir
elastic_ir(sys.argv[1:], standalone_mode=False)
print("torch" in sys.modules)
"""
FILES = ("own.pt", "own.ticket", "own.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked network of ours in all formats that hold its graph."""
    made = tmp_path_factory.mktemp("own")
    network = cifar_resnet(20, width=4)
    graph = eir.trace(network, torch.zeros(1, 3, 32, 32), masks=magnitude_masks(network, 0.8))
    for name in FILES:
        eir.save(graph, made / name)
    return made


def run(folder: Path, *command: str) -> list[str]:
    """The lines that a command prints in a process of its own, and at the end whether it had imported torch."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", FILES)
def test_inspect_and_diff_import_no_torch(folder: Path, name: str) -> None:
    shown = run(folder, "inspect", name)
    assert shown[-1] == "False"
    assert any(line.split()[3:5] == ["BasicBlock", "4"] for line in shown if line.startswith("layer1"))
    compared = run(folder, "diff", name, "own.pt")
    assert compared[-1] == "False"
    assert compared[-2].endswith("tensors, byte for byte")


def test_what_is_built_late_is_what_was_built_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = eir.load(folder / "own.pt")
    assert late.origin.stated is not None
    assert "module" not in vars(late.origin)
    monkeypatch.setattr(described, "is_evident", lambda *_: False)
    at_once = eir.load(folder / "own.pt")
    assert at_once.origin.stated is None
    assert late.info == at_once.info
    assert repr(late.origin.module) == repr(at_once.origin.module)
    assert late.origin.inputs is not None and at_once.origin.inputs is not None
    assert torch.equal(late.origin.inputs.args[0], at_once.origin.inputs.args[0])
    assert [node.op for node in late] == [node.op for node in at_once]


class Kinds(nn.Module):
    """Attributes of many kinds, a parameter that is not trained, tied weights, a buffer outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype, self.activation, self.kind = torch.bfloat16, nn.functional.relu, nn.ReLU
        self.sizes, self.rate, self.table = (1, 2), 0.5, {"a": [1.5, None]}
        self.scale = torch.ones(2)
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        self.layers[1].weight = self.layers[0].weight
        self.layers[0].bias.requires_grad_(False)
        self.register_buffer("shift", torch.zeros(4), persistent=False)
        self.register_buffer("none", None)
        self.head = self.layers[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def test_an_outline_is_described_as_the_module_is() -> None:
    from elastic_ir.formats.pickles.description import describe_module
    from elastic_ir.formats.pickles.outline import outline_of
    from elastic_ir.frontends.trace import weight_table

    module = Kinds()
    record = json.loads(json.dumps(describe_module(module)))
    assert json.loads(json.dumps(describe_module(outline_of(record, weight_table(module))))) == record


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["parts"][1].update({"class": "torch.nn.modules.conv:NoLayer"}),
        lambda data: data["parts"][1].update({"class": "torch.nn.modules.none:Conv2d"}),
        lambda data: data["parts"][1].update({"class": "torch.nn:__builtins__"}),
        lambda data: data["parts"][1].update({"class": "os:system"}),
        lambda data: data["parts"][1]["attributes"].update(act={"class": "torch.utils.data:DataLoader"}),
        lambda data: data["parts"][1]["attributes"].update(act={"function": "torch.load"}),
        lambda data: data["parts"][1]["attributes"].update(act={"partial": [{"float": "1"}, [], {"dict": []}]}),
        lambda data: data["parts"][1]["attributes"].update(act={"symbol": "torch.nothing"}),
        lambda data: data["parts"][1]["attributes"].update(act={"tensor": [[4], "float32", "AAAA"]}),
        lambda data: data["parts"][1]["attributes"].update(act={"unheard": 1}),
        lambda data: data["parts"][1]["attributes"].update(act={"module": "no.such"}),
        lambda data: data["parts"][1]["parameters"].update(more=True),
        lambda data: data["parts"][1]["parameters"].update(weight=1),
        lambda data: data["parts"].pop(2),
        lambda data: data["parts"][1]["attributes"].update(_forward_hooks={"dict": []}),
    ],
)  # fmt: skip
def test_what_is_not_evident_is_built_at_once(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The note about it is there when the file is read, as the module itself shows it."""
    data = json.loads(read_zip_records(folder / "own.pt")["elastic_ir/graph.json"])
    change(data["module"])
    graph = eir.load(folder / "own.pt")
    origin, note = described.origin_of_file(data, graph, ())
    assert note and "\n" not in note
    assert origin.module is None


@pytest.mark.parametrize(
    "name", [FILES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FILES[1:])]
)
def test_a_changed_file_of_ours_is_written_without_torch(folder: Path, name: str) -> None:
    """With ``--no-check``; what is written is what the check leaves as it is, byte for byte."""
    suffix = Path(name).suffix
    for command, depth in (("stretch", "32"), ("squeeze", "14")):
        goal = (command, name, "--to-depth", depth, "--force")
        assert run(folder, *goal, "--no-check", "-o", f"quick{suffix}")[-1] == "False"
        assert run(folder, *goal, "-o", f"checked{suffix}")[-1] == "True"
        assert (folder / f"quick{suffix}").read_bytes() == (folder / f"checked{suffix}").read_bytes()


def test_the_check_begins_when_all_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails leaves nothing: neither the file nor its temporary form."""
    from elastic_ir.emit import files
    from elastic_ir.errors import EmitError

    seen: list[dict[str, tuple[int, ...]]] = []

    def refuse(*_: object) -> None:
        (written,) = tmp_path.iterdir()
        assert written.name != "deep.pt"
        state = torch.load(written, weights_only=True)
        seen.append({key: tuple(tensor.shape) for key, tensor in state.items()})
        raise EmitError("it does not run")

    deep = eir.stretch(eir.load(folder / "own.pt"), to_depth=32)
    monkeypatch.setattr(files, "_checked_module", refuse)
    with pytest.raises(EmitError, match="does not run"):
        eir.save(deep, tmp_path / "deep.pt")
    assert seen == [{key: weight.shape for key, weight in deep.weights.items()}]
    assert not list(tmp_path.iterdir())


class Counts(nn.Module):
    """Runs as many blocks as it had when it was made, so that a deeper one needs a GraphModule."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in range(3):
            x = self.blocks[place](x)
        return x


def test_what_the_check_finds_is_written_in_place_of_what_was_expected(tmp_path: Path) -> None:
    eir.save(eir.trace(Counts(), torch.zeros(1, 4)), tmp_path / "own.pt")
    deep = eir.stretch(eir.load(tmp_path / "own.pt", trust=["tests"]), to_units=5)
    assert deep.origin.stated is not None and deep.origin.stated.at_hand
    eir.save(deep, tmp_path / "deep.pt")
    assert "blocks would never run" in deep.emitted.replaced
    data = json.loads(read_zip_records(tmp_path / "deep.pt")["elastic_ir/graph.json"])
    assert data["module"]["parts"][0]["class"] == "torch.fx.graph_module:GraphModule"
    assert torch.load(tmp_path / "deep.pt", weights_only=True).keys() == deep.weights.keys()
