"""Sources, read as a user gives them: files of every form, architectures, masks, and what is said of bad ones."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import elastic_ir as eir
from elastic_ir.errors import ElasticError, MaskError, SourceError, TraceError, UntrustedError
from elastic_ir.formats.torch_zip import append_zip_records
from elastic_ir.frontends.sources import build, is_name
from elastic_ir.ir.functions import resolve_function
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.zoo import CifarResNet, cifar_resnet
from tests.emit.nets import IMAGE, contents, image, network, same_tensors, some_masks, ticket


def said(source: str | os.PathLike[str], **options: Any) -> str:
    """What a refused source's error says: one line."""
    with pytest.raises(SourceError) as caught:
        eir.load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sorted, as the safetensors library's own writer does not keep the order."""
    return {name: state[name] for name in sorted(state)}


def save_state(path: Path, state: dict[str, Tensor]) -> Path:
    """A state dict, in the form that the extension says."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


BOTH = pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])

# -- files that cannot be read -----------------------------------------------------------------------------------------


@BOTH
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    assert said(tmp_path / name) == f"{tmp_path / name} does not exist"


@BOTH
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert said(tmp_path / name).endswith("is empty")


@BOTH
@pytest.mark.parametrize(
    "garbage", [b"x", b"garbage!" * 999, bytes(range(256)) * 9, b"\x00" * 4096, b"{}" * 99]
)
def test_garbage(tmp_path: Path, name: str, garbage: bytes) -> None:
    (tmp_path / name).write_bytes(garbage)
    assert any(part in said(tmp_path / name) for part in ("is no ", "is not a ", "damaged", "truncated"))


@BOTH
@pytest.mark.parametrize("ours", [False, True])
def test_a_truncated_file(tmp_path: Path, name: str, ours: bool) -> None:
    path = tmp_path / name
    eir.save(ticket(), path) if ours else save_state(path, dict(network().state_dict()))
    whole = path.read_bytes()
    for tenths in range(1, 10):
        path.write_bytes(whole[: len(whole) * tenths // 10])
        assert any(part in said(path) for part in ("truncated", "damaged"))
    path.write_bytes(whole[:-1])
    assert any(part in said(path) for part in ("truncated", "damaged"))


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    assert said(tmp_path / "a.pt") == "a.pt holds a list and no state dict"
    assert "no config.json" in said(tmp_path)


def change_graph(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Our file with its graph altered: the state dict written anew, the records put behind it."""
    from elastic_ir.formats.torch_zip import read_zip_records

    records = read_zip_records(path)
    data = json.loads(records["elastic_ir/graph.json"])
    change(data)
    records["elastic_ir/graph.json"] = json.dumps(data).encode()
    torch.save(torch.load(path, weights_only=True), path)
    append_zip_records(path, records)
    return path


@pytest.mark.slow
def test_a_graph_that_does_not_belong_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    def changed(change: Callable[[dict[str, Any]], Any]) -> str:
        eir.save(ticket(), path)
        return said(change_graph(path, change))

    assert "reads up to 1" in changed(lambda data: data.update(version=2))
    assert "is not an ElasticIR graph" in changed(lambda data: data.pop("version"))
    assert "a weight 'more.weight' that its state dict lacks" in changed(
        lambda data: data["weights"].append(["more.weight", "more.weight", True, True, True, 999])
    )
    assert "the file's state dict has 'conv1.weight', which its graph lacks" in changed(
        lambda data: data["weights"].pop(0)
    )
    assert "damaged" in changed(lambda data: data["nodes"].pop(3))
    assert "damaged" in changed(lambda data: data["nodes"][1].pop("args"))


def test_a_graph_in_metadata_that_is_no_json(tmp_path: Path) -> None:
    save_file(dict(network().state_dict()), tmp_path / "a.safetensors", {"elastic_ir.graph": "{"})
    assert "the graph in its metadata is damaged" in said(tmp_path / "a.safetensors")


def test_a_description_cannot_name_what_a_pickle_may_not(tmp_path: Path) -> None:
    """The module's description is data from a file, too: its names go through the same list."""
    path = tmp_path / "a.pt"
    for bad in ("subprocess:Popen", "os:system", "timm.models._helpers:load_state_dict", "torch.hub:load"):

        def change(data: dict[str, Any], bad: str = bad) -> None:
            data["module"]["parts"][0]["class"] = bad

        eir.save(ticket(), path)
        graph = eir.load(change_graph(path, change))
        assert graph.origin.module is None
        assert bad.replace(":", ".") in graph.info.class_note
        assert isinstance(graph.to_module(), torch.fx.GraphModule)


@pytest.mark.everyday(3)
@pytest.mark.parametrize(
    "value",
    [
        {"function": "os.system"},
        {"symbol": "torch.hub"},
        {"class": "subprocess:Popen"},
        {"enum": ["subprocess:Popen", "x"]},
        {"enum": ["torch.nn.modules.module:warnings.sys", "x"]},
        {"partial": [{"function": "os.system"}, [], {"dict": []}]},
        {"function": "torch.from_file"},
        {"enum": ["timm.layers.format:NoSuchEnum", "x"]},
        {"class": "torch.nn.parallel.data_parallel:DataParallel"},
        {"partial": [{"class": "torch.nn.parallel.data_parallel:DataParallel"}, [], {"dict": []}]},
        {"call": []},
        {"two": [], "keys": []},
    ],
)
def test_values_of_a_description_go_through_the_same_list(tmp_path: Path, value: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["module"]["parts"][0]["attributes"]["extra"] = value

    eir.save(ticket(), tmp_path / "a.pt")
    graph = eir.load(change_graph(tmp_path / "a.pt", change))
    assert graph.origin.module is None
    assert graph.info.class_note
    assert isinstance(graph.to_module(), torch.fx.GraphModule)


RUN = "__import__('pathlib').Path('marker').touch()"


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: nodes[0].update(op=f"x={RUN}"),
        lambda nodes: nodes[2].update(kind="method", op=f"method.relu(); {RUN}; x.relu"),
        lambda nodes: nodes[2].update(kind="method", op="method.__reduce__"),
        lambda nodes: nodes[2].update(kind="method", op="method.numpy"),
        lambda nodes: nodes[2]["kwargs"]["dict"].append([f"x={RUN}, y", 1]),
        lambda nodes: nodes[1].update(scope=f'a"), {RUN}, ("'),
        lambda nodes: nodes[2].update(kind="function", op="os.system", args={"tuple": ["touch marker"]}),
        lambda nodes: nodes[2].update(kind="function", op="torch.load", args={"tuple": ["marker"]}),
        lambda nodes: nodes[2].update(
            kind="function", op="torch.from_file", args={"tuple": ["marker", True, 8]}, kwargs={"dict": []}
        ),
        lambda nodes: nodes[2].update(
            kind="function", op="builtins.getattr", args={"tuple": [1, "__class__"]}
        ),
    ],
)
def test_a_graph_in_a_file_cannot_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    """A GraphModule is source text that is run: no name from a file may end where it should not."""
    monkeypatch.chdir(tmp_path)
    eir.save(eir.trace(network(), input_shape=IMAGE), "a.pt")

    def without_class(data: dict[str, Any]) -> None:
        data["module"] = {"opaque": "so that the graph is used"}
        change(data["nodes"])

    graph = eir.load(change_graph(Path("a.pt"), without_class))
    with pytest.raises(ElasticError):
        graph.to_module()(image())
    assert not Path("marker").exists()


class OneByOne(nn.Module):
    """Its forward names its blocks, so a deeper one is a GraphModule though the class is at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2, self.b3 = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.neg(self.head(self.b3(self.b2(self.b1(x)))))
        return y


def test_a_class_at_hand_makes_the_graph_no_safer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_ir.formats.pickles.allow_list.PACKAGES", ("torch.nn", OneByOne.__module__))
    path = tmp_path / "a.pt"
    x = torch.zeros(1, 4)

    def change(data: dict[str, Any]) -> None:
        node = next(node for node in data["nodes"] if node["op"] == "torch.neg")
        node.update(op="os.system", args={"tuple": [f"touch {tmp_path / 'marker'}"]})

    eir.save(eir.trace(OneByOne(), x), path)
    honest = eir.stretch(eir.load(path), to_units=5)
    assert isinstance(honest.to_module(), torch.fx.GraphModule)
    assert honest.origin is not None
    graph = eir.load(change_graph(path, change))
    assert graph.origin is not None
    with pytest.raises(ElasticError, match=r"os\.system"):
        eir.stretch(graph, to_units=5).to_module()(x)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.from_file",
        "torch.load",
        "torch.functional.torch",
        "torch.nn.functional.handle_torch_function",
        "torch._C._linalg.load",
        "torch._C._linalg.__loader__",
        "os.system",
    ],
)
def test_functions_that_a_file_may_not_name(name: str) -> None:
    with pytest.raises(ElasticError, match="is not among the functions that a file may name"):
        resolve_function(name)


@pytest.mark.parametrize(
    "name",
    ["torch.flatten", "torch._assert", "torch.functional.einsum", "torch.functional.split", "torch.einsum"],
)
def test_functions_that_networks_call(name: str) -> None:
    assert resolve_function(name) is getattr(torch, name.rpartition(".")[2])


@pytest.mark.parametrize("function", [torch.linalg.vector_norm, torch.fft.rfft, torch.special.expit])
def test_arithmetic_of_the_modules_of_torch_that_networks_call(function: Any) -> None:
    """As torch.fx names it, and as an export does."""
    name = function.__name__
    assert resolve_function(f"torch._C._{name.partition('_')[0]}.{name}") is function
    assert resolve_function(f"aten.{name}.default") is getattr(torch.ops.aten, name).default


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


@pytest.mark.parametrize("masks", [False, True])
def test_a_pickle_that_runs_code(tmp_path: Path, masks: bool) -> None:
    """As a source and as a mask file."""
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save({"weight": torch.zeros(2), "bad": Calls(os.system, f"touch {marker}")}, path)
    given: dict[str, Any] = {"masks": path} if masks else {}
    source = save_state(tmp_path / "good.pt", dict(network().state_dict())) if masks else path
    with pytest.raises(UntrustedError, match=r"names posix\.system.*nothing of it was run"):
        eir.load(source, **given)
    assert not marker.exists()


def test_a_pickled_module_of_an_unknown_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, path = tmp_path / "home", tmp_path / "a.pt"
    home.mkdir()
    (home / "somebodys_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(home)
        import somebodys_net  # type: ignore[import-not-found]

        model = somebodys_net.Net()
        torch.save(model, path)
        assert 'pass --trust somebodys_net (in Python: trust=["somebodys_net"])' in said(path)
        graph = eir.load(path, trust=["somebodys_net"])
        assert type(graph.to_module()) is somebodys_net.Net
        same_tensors(graph.state_dict(), model.state_dict())
    del sys.modules["somebodys_net"]
    assert "--trust somebodys_net" in said(path)
    assert "the class Net of somebodys_net cannot be imported here" in said(path, trust=["somebodys_net"])


# -- modules and state dicts -------------------------------------------------------------------------------------------


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model: nn.Module = ConvNeXt([CNBlockConfig(8, 16, 3), CNBlockConfig(16, None, 3)], num_classes=5)
    return model


def small_mobilenet() -> nn.Module:
    from torchvision.models import MobileNetV3
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    plain = (16, 3, 32, 16, True, "HS", 1, 1, 1.0)
    settings = [InvertedResidualConfig(16, 3, 16, 16, False, "RE", 2, 1, 1.0)]
    settings += [InvertedResidualConfig(*plain) for _ in range(3)]
    model: nn.Module = MobileNetV3(settings, 32, num_classes=5)
    return model


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as make

    model: nn.Module = make(num_classes=5)
    return model


@pytest.mark.parametrize("make", [resnet18, small_mobilenet, small_convnext])
def test_a_pickled_torchvision_module(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    torch.save(model, tmp_path / "a.pt")
    graph = eir.load(tmp_path / "a.pt", input_shape=((1, 3, 64, 64),))
    made = graph.to_module()
    assert type(made) is type(model)
    same_tensors(graph.state_dict(), model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(made.eval()(x), model(x))


@BOTH
def test_a_bare_state_dict(tmp_path: Path, name: str) -> None:
    model = network()
    graph = eir.load(save_state(tmp_path / name, dict(model.state_dict())))
    assert [len(stage) for stage in graph.stages] == [2, 2, 2]
    assert graph.state_dict().keys() == model.state_dict().keys()
    deeper = eir.stretch(graph, to_stages=(3, 3, 3))
    cifar_resnet(20, width=4).load_state_dict(deeper.state_dict(), strict=True)
    assert deeper.lineage()["layer1.2.conv1.weight"] == "layer1.1.conv1.weight"


@pytest.mark.everyday(2)
@BOTH
@pytest.mark.parametrize("form", ["module", "graph", "name", "file"])
def test_an_architecture_makes_a_network_of_it(tmp_path: Path, name: str, form: str) -> None:
    model = cifar_resnet(14).eval()
    path = save_state(tmp_path / name, dict(model.state_dict()))
    torch.save(cifar_resnet(14), tmp_path / "arch.pt")
    arch: Any = {
        "module": cifar_resnet(14), "graph": eir.trace(cifar_resnet(14)), "name": "elastic_ir.zoo:cifar_resnet14",
        "file": tmp_path / "arch.pt",
    }[form]  # fmt: skip
    graph = eir.load(path, arch=arch)
    made = graph.to_module().eval()
    assert type(made) is CifarResNet
    assert graph.depth == 14
    assert torch.equal(made(image()), model(image()))
    assert not isinstance(arch, nn.Module) or not torch.equal(
        arch.state_dict()["conv1.weight"], made.state_dict()["conv1.weight"]
    )


@BOTH
def test_an_architecture_that_does_not_fit(tmp_path: Path, name: str) -> None:
    path = save_state(tmp_path / name, dict(cifar_resnet(14, width=4).state_dict()))
    assert said(path, arch="elastic_ir.zoo:cifar_resnet14").startswith(
        f"{name} does not fit the architecture CifarResNet: conv1.weight is [4, 3, 3, 3], the architecture has "
        "[16, 3, 3, 3]; bn1.weight is [4], the architecture has [16]; "
    )
    assert said(path, arch=cifar_resnet(20, width=4)) == (
        f"{name} does not fit the architecture CifarResNet: layer1.2.conv1.weight is missing; "
        "layer1.2.bn1.weight is missing; layer1.2.bn1.bias is missing; and 33 more"
    )
    path = save_state(tmp_path / name, {**cifar_resnet(14, width=4).state_dict(), "more": torch.zeros(1)})
    assert said(path, arch=cifar_resnet(14, width=4)).endswith(": more is unknown to it")
    assert said(path, arch=path) == "the architecture given holds no network, only a state dict"


class TwoNames(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)))
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.blocks(self.first(x)))
        return y


def test_tied_names_of_a_state_dict(tmp_path: Path) -> None:
    model = TwoNames()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for graph in (eir.load(tmp_path / "a.pt"), eir.load(tmp_path / "a.pt", arch=TwoNames())):
        state = graph.state_dict()
        assert state["first.weight"] is state["last.weight"]
    different = {**model.state_dict(), "last.weight": torch.zeros(4, 4)}
    torch.save(different, tmp_path / "a.pt")
    assert said(tmp_path / "a.pt", arch=TwoNames()) == (
        "a.pt does not fit the architecture TwoNames: first.weight and last.weight are one tied weight there, "
        "but differ in the file"
    )


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_of_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_name("timm:resnet18")
    for path in ("model.pt", "./a:b", "dir/a:b.pt", "a:", ":b"):
        assert not is_name(path)
    monkeypatch.chdir(tmp_path)
    Path("timm:resnet18").touch()
    assert not is_name("timm:resnet18")
    assert type(build("elastic_ir.zoo:cifar_resnet20")) is CifarResNet
    assert eir.load("elastic_ir.zoo:cifar_resnet20").depth == 20


def test_names_that_lead_nowhere() -> None:
    assert said("elastic_ir.zoo:cifar_resnet21") == "elastic_ir.zoo has no factory 'cifar_resnet21'"
    assert said("no_such_package:make").startswith("no_such_package cannot be imported")
    assert said("torchvision:resnet19") == "torchvision has no model 'resnet19'"
    assert said("timm:resnet19").startswith("timm has no model 'resnet19'")
    assert (
        said("collections:OrderedDict")
        == "collections:OrderedDict returns a OrderedDict, not a torch.nn.Module"
    )


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder, not on the path, with a module of factories; its module is forgotten afterwards."""
    (tmp_path / "factories_here.py").write_text(
        "from elastic_ir.zoo import cifar_resnet\n"
        "def net():\n    import beside_factories\n    return cifar_resnet(beside_factories.DEPTH)\n"
        "def broken():\n    return {}['x']\n"
        "def sized(depth):\n    return cifar_resnet(depth)\n"
        "def absent():\n    import no_such_package\n"
    )
    (tmp_path / "beside_factories.py").write_text("DEPTH = 14\n")
    (tmp_path / "broken_here.py").write_text("{}['y']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("factories_here", "beside_factories"):
        sys.modules.pop(name, None)


def test_a_factory_of_the_working_folder(nets: Path) -> None:
    before = list(sys.path)
    assert eir.load("factories_here:net").depth == 14  # what it imports itself is found there too
    assert sys.path == before
    assert said("factories_here.py:net") == (
        "factories_here.py cannot be imported (a module is named without its extension; write factories_here:net)"
    )
    assert "here some.folder.nets:net" in said("./some/folder/nets.py:net")


def test_a_factory_that_fails_is_told_in_one_line(nets: Path) -> None:
    start = "the network's factory factories_here:"
    assert said("factories_here:broken") == f"{start}broken fails without arguments: KeyError: 'x'"
    assert said("factories_here:sized").startswith(
        f"{start}sized fails without arguments: TypeError: sized()"
    )
    assert "absent fails without arguments: ModuleNotFoundError" in said("factories_here:absent")
    assert said("broken_here:net") == "broken_here cannot be imported (KeyError: 'y')"
    with pytest.raises(
        SourceError, match="fails without arguments: KeyError"
    ):  # as a reference, tried on meta
        eir.stretch(eir.trace(cifar_resnet(8)), like="factories_here:broken")


def test_what_is_no_source() -> None:
    with pytest.raises(
        SourceError, match=r"load reads a file, a folder or a name, not a CifarResNet; .*trace"
    ):
        eir.load(cifar_resnet(8))  # type: ignore[arg-type]
    with pytest.raises(
        TraceError, match=r"trace reads a torch\.nn\.Module or an ExportedProgram, not a str; .*use load"
    ):
        eir.trace("x")  # type: ignore[arg-type]


class Branching(nn.Module):
    """It branches on a value, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 4] as it comes or doubled."""
        y: Tensor = self.layer(x)
        return y * 2 if y.sum() > 0 else y


@pytest.mark.parametrize("shape", [None, [(1, 4)]])
def test_control_flow_on_values_is_told_quietly(
    capfd: pytest.CaptureFixture[str], shape: list[tuple[int, int]] | None
) -> None:
    with pytest.raises(
        TraceError, match=r"branches on the values of tensors.*state dict can be given"
    ) as caught:
        eir.trace(Branching(), input_shape=shape)
    assert "input-shape" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_torchs_own_loggers_are_silent_while_tracing(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level, logging.getLogger("torch").level

    class Told(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            log.error("failed while attempting to run meta")
            raise ValueError("no")

    with pytest.raises(TraceError, match=r"Pass example_inputs \(--input-shape"):
        eir.trace(Told(4, 4))
    assert not caplog.records
    assert (log.level, logging.getLogger("torch").level) == before


# -- masks of sources --------------------------------------------------------------------------------------------------


def pruned() -> tuple[nn.Module, dict[str, Tensor]]:
    """A network under torch.nn.utils.prune, and its masks."""
    model = network()
    masks = some_masks(model)
    for name, mask in masks.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        prune.custom_from_mask(module, "weight", mask)  # type: ignore[no-untyped-call]
    return model, masks


def check_pruned(graph: eir.Graph, masks: dict[str, Tensor]) -> None:
    wanted = network().state_dict()
    assert set(graph.state_dict()) == set(wanted)
    for name, mask in masks.items():
        assert torch.equal(graph.masks()[name], mask), name
        assert torch.equal(graph.state_dict()[name], wanted[name] * mask), name
    assert graph.masks().keys() == masks.keys()
    same_tensors({name: graph.state_dict(masked=False)[name] for name in wanted}, wanted)


def test_a_pickled_module_under_prune(tmp_path: Path) -> None:
    model, masks = pruned()
    torch.save(model, tmp_path / "a.pt")
    graph = eir.load(tmp_path / "a.pt", input_shape=IMAGE)
    check_pruned(graph, masks)
    assert list(graph.state_dict()) == list(network().state_dict())
    assert torch.equal(graph.to_module().eval()(image()), model.eval()(image()))


@pytest.mark.everyday(1)
@BOTH
@pytest.mark.parametrize("arch", [False, True])
def test_a_state_dict_under_prune(tmp_path: Path, name: str, arch: bool) -> None:
    model, masks = pruned()
    path = save_state(tmp_path / name, dict(model.state_dict()))
    check_pruned(eir.load(path, arch=cifar_resnet(14, width=4) if arch else None), masks)


@BOTH
def test_masks_of_our_own_file_stay_with_an_architecture(tmp_path: Path, name: str) -> None:
    graph = ticket()
    eir.save(graph, tmp_path / name)
    read = eir.load(tmp_path / name, arch=cifar_resnet(14, width=4))
    assert read.sparsity() == graph.sparsity() > 0.6
    assert read.masks().keys() == graph.masks().keys()


@pytest.mark.parametrize("form", ["pt", "safetensors", "mapping"])
@BOTH
def test_a_mask_file(tmp_path: Path, name: str, form: str) -> None:
    model = network()
    masks = some_masks(model)
    path = save_state(tmp_path / name, dict(model.state_dict()))
    given: Any = masks if form == "mapping" else save_state(tmp_path / f"masks.{form}", masks)
    graph = eir.load(path, masks=given)
    same_tensors(by_name(graph.masks()), by_name(masks))
    check_pruned(graph, masks)


@pytest.mark.parametrize("form", ["pt", "safetensors", "mapping"])
@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        (
            "conv1.weight",
            torch.ones(4, 3, 3, 2),
            r"'conv1\.weight' has shape \[4, 3, 3, 2\], its weight \[4, ",
        ),
        ("conv9.weight", torch.ones(4), r"the mask 'conv9\.weight' fits no weight of the network"),
        ("conv1.weight", torch.full((4, 3, 3, 3), 0.5), r"the mask of 'conv1\.weight' holds the value 0\.5"),
        (
            "conv1.weight",
            torch.full((4, 3, 3, 3), float("nan")),
            r"the mask of 'conv1\.weight' holds the value nan",
        ),
        ("conv1.weight", torch.full((4, 3, 3, 3), 2), r"the mask of 'conv1\.weight' holds the value 2"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, form: str, name: str, mask: Tensor, message: str) -> None:
    path = save_state(tmp_path / "a.pt", dict(network().state_dict()))
    masks = {"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3), name: mask}
    given: Any = masks if form == "mapping" else save_state(tmp_path / f"masks.{form}", masks)
    with pytest.raises(MaskError, match=message):
        eir.load(path, masks=given)


def test_a_mask_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = save_state(tmp_path / "a.pt", dict(network().state_dict()))
    for name in ("m.pt", "m.safetensors"):
        assert said(path, masks=tmp_path / name) == f"{tmp_path / name} does not exist"
        (tmp_path / name).touch()
        assert said(path, masks=tmp_path / name).endswith("is empty")


def test_masks_of_a_ticket_of_open_lth(tmp_path: Path) -> None:
    """Its model.pth and mask.pth: names are those of ``blocks.0.conv1``, masks floats for some of the weights."""
    model = cifar_resnet(14, width=4, names="open_lth")
    masks = some_masks(model)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.save({name: mask.int() for name, mask in masks.items()}, tmp_path / "mask.pth")
    graph = eir.load(tmp_path / "model.pth", masks=tmp_path / "mask.pth")
    assert graph.masks().keys() == masks.keys()
    deeper = eir.stretch(graph, to_stages=(3, 3, 3))
    cifar_resnet(20, width=4, names="open_lth").load_state_dict(deeper.state_dict(), strict=True)


@BOTH
def test_exact_zeros(tmp_path: Path, name: str) -> None:
    model = network()
    masks = some_masks(model)
    state = {
        key: tensor * masks[key] if key in masks else tensor for key, tensor in model.state_dict().items()
    }
    path = save_state(tmp_path / name, state)
    assert eir.load(path).masks() == {}
    graph = eir.load(path, mask_from_zeros=True)
    same_tensors(by_name(graph.masks()), by_name({key: mask.bool() for key, mask in masks.items()}))
    dense = save_state(tmp_path / f"dense.{name}", dict(model.state_dict()))
    with pytest.raises(
        MaskError, match="has no exact zeros in its prunable weights, so --mask-from-zeros finds no"
    ):
        eir.load(dense, mask_from_zeros=True)


def test_nothing_is_written_by_reading(tmp_path: Path) -> None:
    eir.save(ticket(), tmp_path / "a.safetensors")
    before = contents(tmp_path)
    eir.stretch(eir.load(tmp_path / "a.safetensors"), to_depth=20).to_module()
    assert contents(tmp_path) == before


# -- names, built without values -------------------------------------------------------------------------------------


def test_a_named_network_is_shown_without_its_values() -> None:
    shown = eir.load("elastic_ir.zoo:cifar_resnet20", headers_only=True)
    assert all(isinstance(weight.storage.data, ShapeOnly) for weight in shown.weights.values())
    whole = eir.load("elastic_ir.zoo:cifar_resnet20")
    assert (shown.depth, shown.stages[1].name, shown.parameter_count()) == (
        20,
        "layer2",
        whole.parameter_count(),
    )
    assert [len(stage) for stage in shown.stages] == [len(stage) for stage in whole.stages]
    with pytest.raises(MaskError, match="no exact zeros"):  # it was given values to look at
        eir.load("elastic_ir.zoo:cifar_resnet20", headers_only=True, mask_from_zeros=True)


def test_a_constructor_that_reads_values_gets_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rates.py").write_text(
        """
import torch
from elastic_ir.zoo import cifar_resnet
def make():
    return cifar_resnet(int(torch.linspace(8, 14, 2)[1].item()))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert eir.load("rates:make", headers_only=True).depth == 14
