"""Networks of one's own, the whole way: their class is in no trusted package, and nothing is lost without it."""

from __future__ import annotations

import importlib
import io
import json
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.emit import files
from elastic_ir.errors import UntrustedError
from elastic_ir.formats.pickles.description import describe_module
from elastic_ir.formats.torch_zip import read_zip_records
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pipeline
from tests.emit.nets import same_tensors
from tests.emit.own_networks import OWN, DropPath, ResNet, ViT, own
from tests.frontends.test_sources import change_graph

TRUST = ["tests"]
_QUICK = ("resnet", "vit", "gpt", "nested")  #: the kinds, without the rest of the networks


def parameters(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """All names; those that take long, or show what another one shows, are for the slow tests."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


NETWORKS = pytest.mark.parametrize("name", parameters(OWN, _QUICK))


def traced(name: str, *, training: bool = False) -> Graph:
    model, args, kwargs = own(name, training=training)
    return eir.trace(model, args, kwargs)


def one_deeper(graph: Graph) -> Graph:
    return eir.stretch(graph, to_stages=[len(stage) + 1 for stage in graph.stages])


def run(module: nn.Module, name: str) -> list[Tensor]:
    _, args, kwargs = own(name)
    with torch.no_grad():
        leaves = _pytree.tree_leaves(module.eval()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_zip_records(path)["elastic_ir/graph.json"])
    return found


def through(graph: Graph, path: Path, trust: list[str]) -> Graph:
    """The graph, written and read again."""
    eir.save(graph, path)
    return eir.load(path, trust=trust)


CHAINS: dict[str, list[Callable[[Graph], Graph]]] = {
    "stretched": [one_deeper],
    "stretched twice": [one_deeper, one_deeper],
    "interpolated": [
        lambda graph: eir.stretch(graph, to_stages=[len(s) + 2 for s in graph.stages], order="interpolate")
    ],
    "and back": [one_deeper, lambda graph: eir.squeeze(graph, to_stages=[len(s) - 1 for s in graph.stages])],
    "squeezed": [lambda graph: eir.squeeze(graph, to_stages=[len(s) - 1 for s in graph.stages], drop="even")],
}  # fmt: skip


@pytest.mark.slow
@NETWORKS
@pytest.mark.parametrize("chain", parameters(CHAINS, ("and back",)))
def test_trusted_later_is_as_good_as_trusted_from_the_start(tmp_path: Path, name: str, chain: str) -> None:
    """What is said of the module is the same to the letter: class, attributes, counts, flags, in a chain of files."""
    eir.save(traced(name), tmp_path / "own.pt")
    with_class, without = (eir.load(tmp_path / "own.pt", trust=trust) for trust in (TRUST, []))
    assert with_class.origin.module is not None
    assert without.origin.module is None
    for where in ("with", "without"):  # files of one name, which their records state
        (tmp_path / where).mkdir()
    for step in CHAINS[chain]:
        with_class = through(step(with_class), tmp_path / "with" / "net.pt", TRUST)
        without = through(step(without), tmp_path / "without" / "net.pt", [])
        wanted, found = (record(tmp_path / where / "net.pt") for where in ("with", "without"))
        found["module"].pop("unproven", None)
        assert found == wanted
    later = eir.load(tmp_path / "without" / "net.pt", trust=TRUST)
    assert not later.info.class_note
    made, native = later.to_module(), with_class.to_module()
    assert type(made) is type(native)
    assert type(made).__module__ == "tests.emit.own_networks"
    assert describe_module(made) == describe_module(native)
    same_tensors(dict(made.state_dict()), dict(native.state_dict()))
    assert all(map(torch.equal, run(made, name), run(native, name)))
    assert later.masks().keys() == with_class.masks().keys()


@pytest.mark.everyday(4)
@NETWORKS
@pytest.mark.parametrize("chain", ["stretched", "squeezed"])
@pytest.mark.parametrize("trust", [TRUST, []], ids=["trusted", "untrusted"])
def test_an_outline_is_laid_out_as_the_module_is(
    tmp_path: Path, name: str, chain: str, trust: list[str]
) -> None:
    """What is written without torch is what the module, built and checked, is described as."""
    eir.save(traced(name), tmp_path / "own.pt")
    graph = eir.load(tmp_path / "own.pt", trust=trust)
    for step in CHAINS[chain]:
        graph = step(graph)
    early = files._data_of_outline(graph)
    assert early is not None
    assert "module" not in vars(graph.origin)  # nobody has asked for it
    late = files._data(graph, files._checked_module(graph, check=True))
    early["module"].pop("unproven", None)
    late["module"].pop("unproven", None)
    assert json.loads(json.dumps(early)) == json.loads(json.dumps(late))


@pytest.mark.everyday(2)
@NETWORKS
@pytest.mark.parametrize("training", [False, True])
def test_a_module_without_the_class_computes_the_same_and_trains(
    tmp_path: Path, name: str, training: bool
) -> None:
    graph = through(one_deeper(traced(name, training=training)), tmp_path / "own.pt", [])
    with_class = eir.load(tmp_path / "own.pt", trust=TRUST).to_module()
    module = graph.to_module()
    assert isinstance(module, torch.fx.GraphModule)
    assert module.training is training
    frozen = {n for n, p in with_class.named_parameters() if not p.requires_grad}
    assert {n for n, p in module.named_parameters() if not p.requires_grad} == frozen
    for ours, theirs in zip(run(module, name), run(with_class, name), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    _, args, kwargs = own(name)
    module.train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        module(*args, **kwargs).square().mean().backward()
        optimizer.step()
    changed = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
    assert changed & {n for n, _ in module.named_parameters()}
    assert {n for n in changed if n.endswith("running_mean")} == {
        n for n in before if n.endswith("running_mean")
    }


@pytest.mark.everyday(3)
@pytest.mark.parametrize("name", parameters(OWN, ("nested", "pruned")))
@pytest.mark.parametrize("target", ["a.onnx", "a.py", "a.ticket", "a.safetensors"])
def test_other_files_without_the_class(tmp_path: Path, name: str, target: str) -> None:
    graph = one_deeper(through(traced(name), tmp_path / "own.pt", []))
    eir.save(graph, tmp_path / target)  # checked: run in onnxruntime, or as source, against the module
    if target in ("a.ticket", "a.safetensors"):
        later = eir.load(tmp_path / target, trust=TRUST)
        assert type(later.to_module()).__module__ == "tests.emit.own_networks"
        same_tensors(later.state_dict(), graph.state_dict())


@pytest.mark.slow
def test_example_inputs_come_back(tmp_path: Path) -> None:
    for name in OWN:
        _, args, kwargs = own(name)
        inputs = through(traced(name), tmp_path / "own.pt", []).origin.inputs
        assert inputs is not None
        found, spec = _pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
        wanted, wanted_spec = _pytree.tree_flatten((args, kwargs))
        assert spec == wanted_spec
        for one, other in zip(found, wanted, strict=True):
            if not isinstance(other, Tensor):
                assert (type(one), one) == (type(other), other)
                continue
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            if not other.is_floating_point():
                assert torch.equal(one, other)


class Steps(nn.Module):
    """Reads its blocks by number: a deeper one takes another skip than the plan says."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(depth))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == 1:
                kept = x
        y: Tensor = self.head(x + kept)
        return y


class Counts(Steps):
    """Runs as many blocks as it had when it was made: a deeper one would never run the rest."""

    def forward(self, x: Tensor) -> Tensor:
        for place in range(4):
            x = self.blocks[place](x)
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize("kind", [Steps, Counts])
def test_a_class_that_does_not_follow_the_plan_is_not_taken_up(tmp_path: Path, kind: type[nn.Module]) -> None:
    """Its description was changed without it; whoever trusts it later gets what the graph computes, not the class."""
    x = torch.randn(2, 4)
    eir.save(eir.trace(kind(), x), tmp_path / "own.pt")
    deep = one_deeper(eir.load(tmp_path / "own.pt"))
    eir.save(deep, tmp_path / "deep.pt")
    later = eir.load(tmp_path / "deep.pt", trust=TRUST)
    assert isinstance(later.origin.module, kind)
    module = later.to_module()
    assert isinstance(module, torch.fx.GraphModule)
    assert torch.equal(module(x), deep.to_module()(x))


def test_passes_without_the_class(tmp_path: Path) -> None:
    graph = through(traced("pruned"), tmp_path / "own.pt", [])
    small = Pipeline.parse("compact,fold-batchnorm").run(graph)
    later = through(small, tmp_path / "small.pt", TRUST)
    assert type(later.to_module()).__name__ == "VGG"
    for ours, theirs in zip(run(later.to_module(), "pruned"), run(graph.to_module(), "pruned"), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


class Holder(nn.Module):
    """What cannot be told as plain data stands among its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = io.StringIO()
        self.rows = [nn.Linear(1, 1)]
        self.blocks = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        self.blocks[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


def test_what_cannot_be_described_costs_the_class_and_nothing_else(tmp_path: Path) -> None:
    model = Holder().eval()
    eir.save(eir.trace(model, torch.randn(2, 4)), tmp_path / "own.pt")
    for trust in ([], TRUST):
        graph = eir.load(tmp_path / "own.pt", trust=trust)
        assert "stream holds a StringIO" in graph.info.class_note
        module = through(eir.stretch(graph, to_units=5), tmp_path / "deep.pt", trust).to_module()
        assert not module.training
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        assert frozen[:2] == ["blocks.0.weight", "blocks.0.bias"]
        inputs = eir.load(tmp_path / "deep.pt").origin.inputs
        assert inputs is not None and inputs.args[0].shape == (2, 4)


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["inputs"].update(args={"tuple": [{"tensor": [[1 << 40], "float32"]}]}),
        lambda data: data["inputs"].update(args={"tuple": [{"tensor": [[4], "bool", "AAAA"]}]}),
        lambda data: data["inputs"].update(args={"tuple": [{"tensor": [[4], "no_dtype"]}]}),
        lambda data: data["inputs"].update(args={"tuple": [{"call": []}]}),
        lambda data: data["inputs"].update(args=5),
        lambda data: data["module"]["parts"][0].update(attributes={"_forward_hooks": {"dict": []}}),
        lambda data: data["module"]["parts"].pop(1),
        lambda data: data["module"].update(parts=3),
    ],
)
def test_a_damaged_record_is_told(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The graph is read all the same; what is wrong is a note."""
    eir.save(traced("resnet"), tmp_path / "own.pt")
    graph = eir.load(change_graph(tmp_path / "own.pt", change), trust=TRUST)
    assert graph.info.class_note
    assert "\n" not in graph.info.class_note
    same_tensors(
        through(one_deeper(graph), tmp_path / "deep.pt", []).state_dict(), one_deeper(graph).state_dict()
    )


def test_drop_rates_and_indices_of_the_new_layers(tmp_path: Path) -> None:
    """What depends on a layer's place, as the class made it, is set without the class."""
    graph = through(one_deeper(through(traced("vit"), tmp_path / "own.pt", [])), tmp_path / "deep.pt", TRUST)
    module = graph.to_module()
    assert isinstance(module, ViT)
    assert [block.layer_idx for block in module.blocks] == [0, 1, 2, 3, 4]
    rates = torch.tensor([part.rate for part in module.modules() if isinstance(part, DropPath)])
    assert torch.allclose(rates, torch.linspace(0, 0.2, 5))
    assert module.depth == 5


class Noisy(nn.Module):
    """Draws noise in training, which torch.fx would record as it met it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.randn_like(x)
        y: Tensor = functional.dropout(self.blocks(x), 0.5, self.training)
        return y


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_no_draw_of_training_stays(tmp_path: Path, frontend: Frontend) -> None:
    model, x = Noisy(), torch.randn(64, 4)
    eir.save(eir.trace(model, x, frontend=frontend), tmp_path / "own.pt")
    assert model.training
    module = eir.load(tmp_path / "own.pt").to_module()
    assert module.training
    assert (module(x) == 0).float().mean() > (model.blocks(x) == 0).float().mean()  # the dropout is in it
    assert torch.equal(module.eval()(x), model.eval()(x))


def test_trust_finds_a_package_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``--arch net:make`` does; another name than the trusted one is not looked for there."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "net_at_work.py").write_text(
        "from tests.emit.own_networks import ResNet\nclass Net(ResNet):\n    pass\n"
    )
    monkeypatch.chdir(home)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(home)
        made = importlib.import_module("net_at_work").Net().eval()
    eir.save(eir.trace(made, torch.randn(1, 3, 8, 8)), tmp_path / "own.pt")
    torch.save(made, tmp_path / "pickled.pt")
    monkeypatch.delitem(sys.modules, "net_at_work")
    note = eir.load(tmp_path / "own.pt").info.class_note
    assert "net_at_work.Net is in no trusted package" in note
    assert "--trust net_at_work" in note
    with pytest.raises(UntrustedError, match="--trust net_at_work"):
        eir.load(tmp_path / "pickled.pt")
    assert "net_at_work" not in sys.modules
    for name in ("own.pt", "pickled.pt"):
        found = eir.load(tmp_path / name, trust=["net_at_work", *TRUST]).to_module()
        assert type(found).__module__ == "net_at_work"
        monkeypatch.delitem(sys.modules, "net_at_work")
    monkeypatch.chdir(tmp_path)
    gone = eir.load(tmp_path / "own.pt", trust=["net_at_work", *TRUST])
    assert "run where net_at_work lies" in gone.info.class_note


def test_a_class_of_the_script_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python net.py`` saves a class of ``__main__``, which others import as ``net``."""
    main = types.ModuleType("__main__")
    main.__file__ = str(tmp_path / "net_of_mine.py")
    source = "from tests.emit.own_networks import ResNet\nclass Net(ResNet):\n    pass\n"
    Path(main.__file__).write_text(source)
    exec(source, vars(main))
    model = vars(main)["Net"]().eval()
    assert isinstance(model, ResNet)
    x = torch.randn(1, 3, 8, 8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)
        eir.save(eir.trace(model, x), tmp_path / "own.pt")
    read = eir.load(tmp_path / "own.pt")
    assert "--trust net_of_mine" in read.info.class_note
    monkeypatch.syspath_prepend(tmp_path)
    later = eir.load(through_file(read, tmp_path / "deep.pt"), trust=["net_of_mine", "tests"])
    assert not later.info.class_note, later.info.class_note
    module = later.to_module()
    assert (type(module).__module__, type(module).__name__) == ("net_of_mine", "Net")
    monkeypatch.delitem(sys.modules, "net_of_mine")


def through_file(graph: Graph, path: Path) -> Path:
    eir.save(one_deeper(graph), path)
    return path
