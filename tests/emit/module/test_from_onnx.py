"""Modules from ONNX files: outputs as onnxruntime's, names and ties as the graph's, training, and other depths."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

import elastic_ir as eir
from elastic_ir.emit.onnx_operators.norms import BatchNorm
from elastic_ir.errors import EmitError
from elastic_ir.frontends.onnx.graph import load_onnx
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tensors.weights import Weights
from tests.networks.onnx_files import PATHS, SHAPES, feeds, run

HELD = [
    name
    for name in PATHS
    if not name.startswith("silero") or name in ("silero_vad_16k_sequence", "silero_vad_openvino_16k")
]  #: real files of the operators that are known
BODIES = ["silero_vad", "silero_vad_half", "silero_vad_op18_ifless", "silero_vad_16k_op15"]


def real(name: str) -> Graph:
    if not PATHS[name].exists():
        pytest.skip(f"{PATHS[name].name} is not installed")
    return load_onnx(PATHS[name], SHAPES.get(name))


def outputs(module: nn.Module, given: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        results = module(*given)
    return [results] if isinstance(results, Tensor) else list(results)


def tensors(given: dict[str, Any]) -> list[Tensor]:
    return [torch.from_numpy(np.array(item)) for item in given.values()]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", HELD)
def test_outputs_as_in_onnxruntime(name: str) -> None:
    graph = real(name)
    given = feeds(graph)
    module = graph.to_module()
    assert isinstance(module, fx.GraphModule) and not module.training
    assert module.state_dict().keys() == graph.weights.keys()
    for made, expected in zip(outputs(module, tensors(given)), run(PATHS[name], given), strict=True):
        torch.testing.assert_close(made, torch.from_numpy(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.everyday(1)
def test_gradients_reach_every_parameter(name: str) -> None:
    graph = real(name)
    module = graph.to_module()
    results = module(*tensors(feeds(graph)))
    made = [results] if isinstance(results, Tensor) else results
    loss = torch.stack([item.square().sum() for item in made if item.requires_grad]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    learns = {key: item for key, item in module.named_parameters() if item.requires_grad}
    assert [key for key, item in learns.items() if item.grad is None] == []
    numbers = {key for key, _ in module.named_parameters()} - learns.keys()
    assert all("onnx.Resize" in users(graph, key) for key in numbers)  # its factors are read as numbers


def users(graph: Graph, name: str) -> set[str]:
    return {node.op for node in graph if name in node.weight_names()}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused(name: str) -> None:
    with pytest.raises(
        EmitError, match=r"node %If\w*: If holds a body, .*; write the network as .onnx instead$"
    ):
        real(name).to_module()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opennsfw", "minilm", "ocr-cls"])
def test_another_depth_and_back(name: str) -> None:
    graph = real(name)
    given = tensors(feeds(graph))
    stage = max(graph.stages, key=lambda item: len(item.blocks))
    deeper = eir.stretch(graph, to_stages={stage.name: len(stage) + 2})
    module = deeper.to_module().train()
    assert set(module.state_dict()) == set(deeper.weights)
    owners: dict[int, str] = {}
    for key, tensor in module.state_dict().items():
        storage = id(deeper.weights[key].storage)
        assert owners.setdefault(tensor.data_ptr(), str(storage)) == str(storage), f"{key} shares a storage"
    results = module(*given)
    last = results if isinstance(results, Tensor) else results[-1]
    last.float().square().sum().backward()
    clones = [key for key in deeper.weights if key not in graph.weights]
    moved = dict(module.named_parameters())
    learns = [key for key in clones if key in moved]
    assert learns and all(moved[key].grad is not None for key in learns)
    back = eir.squeeze(deeper, to_stages={stage.name: len(stage)}).to_module()
    for one, other in zip(outputs(graph.to_module(), given), outputs(back, given), strict=True):
        assert torch.equal(one, other)
    assert outputs(deeper.to_module(), given)[-1].isfinite().all()


# -- a network made here: convolutions with norms, so that training shows ----------------------------------------------


def network(path: Path, blocks: int = 3) -> Path:
    """Residual blocks with batch norms and a dropout, exported by torch with nothing folded."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(6, momentum=0.3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + torch.relu(self.norm(self.conv(x)))
            return out

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, stride=2)
            self.layers = nn.Sequential(*(Block() for _ in range(blocks)))
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.drop(self.layers(self.stem(x)).mean((2, 3))))
            return out

    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    torch.onnx.export(
        net.train(), (torch.randn(2, 3, 17, 17),), path, dynamo=False, verbose=False,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, opset_version=13,
    )  # fmt: skip
    model = onnx.load(path)
    for node in model.graph.node:  # as a file for inference has them
        if node.op_type == "BatchNormalization":
            del node.output[1:]
            kept = [item for item in node.attribute if item.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("net") / "net.onnx")


def image() -> Tensor:
    return torch.randn(2, 3, 17, 17, generator=torch.Generator().manual_seed(1))


def test_evaluation_leaves_statistics_and_training_updates_them(path: Path) -> None:
    module = load_onnx(path).to_module()
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    assert len(norms) == 3
    assert norms[0].momentum == pytest.approx(0.7)  # 1 - torch's 0.3
    before = copy.deepcopy(module.state_dict())
    module(image())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    module.train()(image())
    after = module.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(before[key], value)}
    assert changed == {key for key in after if "running" in key}
    assert len(changed) == 6
    module.layers.get_submodule("0").eval()  # type: ignore[union-attr]  # a block of it may stay frozen
    assert sum(norm.training for norm in norms) == 2


def test_a_training_step_reaches_every_parameter(path: Path) -> None:
    module = load_onnx(path).to_module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    target = torch.tensor([1, 3])
    losses = []
    for _ in range(20):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(image()), target)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_moments_reach_their_parameters(path: Path) -> None:
    """Though the file lists its weights in an order that no module has."""
    graph = load_onnx(path)
    graph.weights = Weights(sorted(graph.weights.items(), key=lambda item: item[0][::-1]))
    module = graph.to_module()
    names = [name for name, _ in module.named_parameters()]
    assert names != [name for name, weight in graph.weights.items() if weight.is_parameter]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()
    state = graph.remap_optimizer_state(optimizer.state_dict(), names)
    assert [moments["momentum_buffer"].unique().item() for moments in state["state"].values()] == [
        number + 1.0 for number in range(len(names))
    ]
    deeper = eir.stretch(graph, to_stages=(5,))
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names)
    for number, (name, parameter) in enumerate(deeper.to_module().named_parameters()):
        moment = state["state"][number]["momentum_buffer"]
        assert moment.shape == parameter.shape
        assert moment.unique().item() == names.index(deeper.weights[name].origin) + 1.0


def test_masks_and_ties(path: Path) -> None:
    graph = load_onnx(path)
    weight = next(w for name, w in graph.weights.items() if w.prunable and "layers.1" in name)
    weight.storage.mask = Mask.from_array(np.arange(np.prod(weight.shape)).reshape(weight.shape) % 2)
    masked, dense = (graph.to_module(masked=flag).state_dict()[weight.name] for flag in (True, False))
    assert (masked.reshape(-1)[::2] == 0).all() and not (dense == 0).any()
    assert torch.equal(masked.reshape(-1)[1::2], dense.reshape(-1)[1::2])
    other = weight.name.replace("layers.1", "layers.2")
    graph.weights[other] = dataclasses.replace(graph.weights[other], storage=weight.storage)
    tied = graph.to_module()
    assert tied.get_parameter(other) is tied.get_parameter(weight.name)


def test_copies_pickles_and_states(path: Path) -> None:
    module = load_onnx(path).to_module()
    expected = outputs(module, [image()])[0]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert list(twin.state_dict()) == list(module.state_dict())
        assert torch.equal(outputs(twin, [image()])[0], expected)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = load_onnx(path).to_module()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)


def test_half_precision_and_the_meta_device(path: Path) -> None:
    module = load_onnx(path).to_module().to(torch.bfloat16)
    assert module(image().to(torch.bfloat16)).dtype == torch.bfloat16
    assert module.to("meta")(image().to("meta", torch.bfloat16)).shape == (2, 4)


# -- refusals and odd graphs -------------------------------------------------------------------------------------------


def small(
    nodes: list[Any], folder: Path, *, weights: dict[str, Any] | None = None, inputs: str = "x"
) -> Graph:
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in inputs.split()]
    held = [numpy_helper.from_array(np.asarray(item), name) for name, item in (weights or {}).items()]
    made = helper.make_graph(nodes, "small", entries, [helper.make_empty_tensor_value_info("y")], held)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("other", 1)]
    file = folder / "small.onnx"
    onnx.save(helper.make_model(made, opset_imports=domains, ir_version=8), file)
    return load_onnx(file)


REFUSED: dict[str, tuple[list[Any], str]] = {
    "an operator": (
        [helper.make_node("Foo", ["x"], ["y"], domain="other")],
        "node %Foo: other.Foo has no form",
    ),
    "an attribute": (
        [helper.make_node("Gemm", ["x", "x"], ["y"], transB=1, fast=1)],
        "node %Gemm (Gemm) has the attribute 'fast'",
    ),
    "a value": (
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        "node %Cast (Cast) has to=8",
    ),
    "results": (
        [helper.make_node("Relu", ["x"], ["y", "z"])],
        "node %Relu (Relu) is asked for more results than it has",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_the_node(what: str, tmp_path: Path) -> None:
    nodes, words = REFUSED[what]
    with pytest.raises(EmitError) as caught:
        small(nodes, tmp_path).to_module()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; write the network as .onnx instead")


@pytest.mark.parametrize("name", ["a..b", 'a"b', "train", "a\nb"])
def test_names_that_no_module_can_have(name: str, tmp_path: Path) -> None:
    graph = small(
        [helper.make_node("Add", ["x", name], ["y"])], tmp_path, weights={name: np.ones(3, np.float32)}
    )
    if graph.weights.keys() != {name}:
        pytest.skip("the file's name is not kept")
    with pytest.raises(EmitError, match="has a name that no module can have"):
        graph.to_module()


def test_names_of_inputs_are_made_names_of_python(tmp_path: Path) -> None:
    names = "x.1 x:1 class self 1"
    made = [helper.make_node("Sum", names.split(), ["y"])]
    module = small(made, tmp_path, inputs=names).to_module()
    assert torch.equal(module(*[torch.ones(2, 3)] * 5), torch.full((2, 3), 5.0))


def test_what_no_node_reads_stays(tmp_path: Path) -> None:
    weights = {"unused": np.ones((2, 2), np.float32), "w": np.ones((3, 3), np.float32)}
    graph = small([helper.make_node("MatMul", ["x", "w"], ["y"])], tmp_path, weights=weights)
    assert set(graph.to_module().state_dict()) == set(graph.weights)
    assert len(graph.weights) == 2


@pytest.mark.parametrize("attribute", ["function", "operation"])
def test_keywords_of_ours_are_no_attributes(tmp_path: Path, attribute: str) -> None:
    """A file cannot set what distinguishes operators that are one function."""
    kind = "ReduceSum" if attribute == "function" else "Sum"
    node = helper.make_node(kind, ["x"], ["y"], **{attribute: "prod"})
    with pytest.raises(EmitError, match=f"the attribute '{attribute}', which has no form in PyTorch here"):
        small([node], tmp_path).to_module()


def test_sizes_stay_numbers(tmp_path: Path) -> None:
    """So that torch.compile sees one graph, for all sizes."""
    weights = {
        "one": np.array(1, np.int64), "zero": np.array([0], np.int64), "minus": np.array([-1], np.int64),
        "two": np.array([2], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["v"]),
        helper.make_node("Mul", ["v", "two"], ["d"]),
        helper.make_node("Div", ["d", "two"], ["h"]),
        helper.make_node("Concat", ["minus", "h"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    module = small(nodes, tmp_path, weights=weights).to_module()
    assert isinstance(module, fx.GraphModule)
    called = {getattr(node.target, "__name__", "") for node in module.graph.nodes}
    assert {"pick_sizes", "compute_sizes", "join_sizes"} <= called and "as_tensor" not in called
    assert {node.kwargs.get("operation") for node in module.graph.nodes} == {"Mul", "Div", None}
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for width in (3, 5):
        given = torch.randn(2, width)
        assert torch.equal(compiled(given), given)


def test_a_session_agrees_on_training_mode(tmp_path: Path) -> None:
    """A norm with training_mode=1 uses the batch's statistics in either mode, and returns the running ones."""
    shapes = {"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}
    rng = np.random.default_rng(0)
    weights = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", *shapes], ["n", "m", "v"], training_mode=1, momentum=0.8
        ),
        helper.make_node("Add", ["m", "v"], ["mv"]),
        helper.make_node("Add", ["n", "mv"], ["y"]),
    ]
    module = small(nodes, tmp_path, weights=weights).to_module()
    given = rng.standard_normal((2, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": given})
    torch.testing.assert_close(outputs(module, [torch.from_numpy(given)])[0], torch.from_numpy(expected))
