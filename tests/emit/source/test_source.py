"""Python source: one readable file that loads the state dict strictly, computes the same, and is a whole family."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.emit.source.file import check_source, network_of, run_source, source_of
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.weights import Weights
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.emit.nets import image, network, ticket
from tests.emit.source_networks import (
    GOLDEN,
    Aliased,
    Bert,
    Gates,
    Odd,
    Rated,
    TiedHead,
    WithBuffers,
    ascending,
)


def emitted(graph: Graph, **arguments: object) -> nn.Module:
    """The network that the emitted source defines, after all checks; other arguments than its own may be given."""
    text = source_of(graph)
    tidy(text)
    namespace: dict[str, object] = {}
    exec(compile(text, "net.py", "exec"), namespace)
    made = namespace[network_of(text)](**arguments)  # type: ignore[operator]
    assert isinstance(made, nn.Module)
    return made


def tidy(text: str) -> None:
    """The text is as ruff leaves it, imports nothing but torch and the standard library, and has no odd names."""
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom | ast.Import)
    }  # fmt: skip
    assert imported <= {
        "__future__",
        "collections",
        "collections.abc",
        "math",
        "torch",
        "torch.nn.functional",
    }
    for command in (["format", "--line-length", "100", "--diff"], ["check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "-"],
            input=text,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def same_function(graph: Graph, made: nn.Module, *inputs: Tensor) -> None:
    made.load_state_dict(graph.state_dict(), strict=True)
    torch.testing.assert_close(made.eval()(*inputs), graph.to_module().eval()(*inputs))


def test_the_text_of_a_cifar_resnet() -> None:
    assert source_of(eir.trace(cifar_resnet(56))) == GOLDEN


@pytest.mark.slow
def test_two_depths_differ_in_the_counts_only() -> None:
    shallow, deep = (source_of(eir.trace(cifar_resnet(depth)), check=False) for depth in (20, 110))
    assert shallow != deep
    assert shallow.replace("(3, 3, 3)", "(18, 18, 18)").replace("depth 20", "depth 110") == deep


@pytest.mark.parametrize("depths", [(3, 4, 2), (2, 2, 5)])
def test_other_counts_give_the_names_of_the_stretched_network(depths: tuple[int, ...]) -> None:
    graph = eir.trace(network(14), input_shape=((1, 3, 16, 16),))
    deeper = eir.stretch(graph, to_stages=depths)
    made = emitted(graph, depths=depths)
    assert list(made.state_dict()) == list(deeper.state_dict())
    same_function(deeper, made, image())


@pytest.mark.slow
def test_a_stretched_network_has_its_own_counts() -> None:
    deeper = eir.stretch(eir.trace(network(14), input_shape=((1, 3, 16, 16),)), to_depth=26)
    assert "depths: tuple[int, ...] = (4, 4, 4)" in source_of(deeper)
    same_function(deeper, emitted(deeper), image())


def test_the_other_names_of_the_zoo() -> None:
    graph = eir.trace(cifar_resnet(14, width=4, names="open_lth"), input_shape=((1, 3, 16, 16),))
    deeper = eir.stretch(graph, to_stages=(2, 3, 3))
    same_function(deeper, emitted(graph, depths=(2, 3, 3)), image())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [13, 16])
def test_vgg(depth: int) -> None:
    graph = eir.trace(cifar_vgg(depth))
    made = emitted(graph)
    assert list(made.state_dict()) == list(graph.state_dict())
    same_function(graph, made, torch.randn(2, 3, 32, 32))


@pytest.mark.slow
def test_other_counts_of_a_vgg() -> None:
    graph = eir.trace(cifar_vgg(13))
    deeper = eir.stretch(graph, to_stages=(2, 2, 3, 3, 3))
    same_function(deeper, emitted(graph, depths=(2, 2, 3, 3, 3)), torch.randn(2, 3, 32, 32))


def test_masks_stay_in_the_state_dict(tmp_path: Path) -> None:
    graph = ticket()
    eir.save(graph, tmp_path / "net.py")
    eir.save(graph, tmp_path / "net.pt")
    text = (tmp_path / "net.py").read_text()
    assert (
        "the pruned weights are the zeros of the state dict" in " ".join(text.split())
        and "mask" not in text.split('"""')[2]
    )
    made = run_source(text, "CifarResNet")
    made.load_state_dict(torch.load(tmp_path / "net.pt"), strict=True)
    torch.testing.assert_close(made.eval()(image()), graph.to_module().eval()(image()))


def test_a_file_gives_the_same_text_as_the_live_network(tmp_path: Path) -> None:
    graph = eir.trace(network(20), input_shape=((1, 3, 16, 16),))
    eir.save(graph, tmp_path / "net.pt")
    again = eir.load(tmp_path / "net.pt")
    assert source_of(again) == source_of(graph)
    again.origin = Origin()  # the class is not to be had
    made = emitted(again)
    same_function(graph, made, image())


def test_a_layer_that_a_pass_has_put_in() -> None:
    from tests.rewrite.test_layer_edits import Insert

    graph = Insert().run(eir.trace(network(14), input_shape=((1, 3, 16, 16),)))
    made = emitted(graph)
    assert isinstance(made.get_submodule("layer1.1.conv1_2"), nn.Conv2d)
    same_function(graph, made, image())


@pytest.mark.slow
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_bert_encoder(frontend: Frontend) -> None:
    tokens = torch.randint(0, 50, (2, 7))
    model = Bert(layers=3).eval()
    graph = eir.trace(model, (tokens,), frontend=frontend)
    text = source_of(graph)
    tidy(text)
    assert "self.query = nn.Linear(16, 16)" in text and "depth: int = 3" in text
    same_function(graph, emitted(graph), tokens)
    deeper = eir.stretch(graph, to_units=5)
    same_function(deeper, emitted(graph, depth=5), torch.randint(0, 50, (2, 7)))
    made = emitted(graph)
    made.load_state_dict(graph.state_dict())
    longer = torch.randint(0, 50, (3, 11))
    torch.testing.assert_close(made.eval()(longer), model(longer))  # the sizes are no constants


def test_modes_follow_the_module() -> None:
    model = Bert(layers=2, dropout=0.5).eval()
    graph = eir.trace(model, (torch.ones(2, 7, dtype=torch.long),))
    made = emitted(graph)
    made.load_state_dict(graph.state_dict())
    tokens = torch.randint(0, 50, (2, 7))
    assert not torch.equal(made.train()(tokens), made.train()(tokens))
    assert torch.equal(made.eval()(tokens), made.eval()(tokens))


def test_a_block_s_rate_is_an_argument() -> None:
    graph = eir.trace(ascending(), (torch.randn(2, 8),))
    text = source_of(graph)
    assert "self.rate = rate" in text and "F.dropout(" in text and "training=self.training" in text
    made = emitted(graph)
    made.load_state_dict(graph.state_dict())
    assert [block.rate for block in made.blocks] == [0.0, 0.1, 0.3]  # type: ignore[union-attr]


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_list_whose_blocks_read_something_else_too_is_a_loop(frontend: Frontend) -> None:
    torch.manual_seed(0)
    graph = eir.trace(Gates().eval(), (torch.randn(2, 6),), frontend=frontend)
    text = source_of(graph)
    tidy(text)
    assert "for block in self.blocks:" in text and "def __init__(self, depth: int = 3) -> None:" in text
    deeper = eir.stretch(graph, to_units=5)
    same_function(deeper, emitted(graph, depth=5), torch.randn(2, 6))


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["b1", "b2", "b3"], '{f"b{i}": Rated() for i in range(1, depth + 1)}'),
        (["b01", "b02", "b03"], '{f"b{i:02}": Rated() for i in range(1, depth + 1)}'),
        (["b2", "b4", "b6"], '{"b2": Rated(), "b4": Rated(), "b6": Rated()}'),
    ],
)
def test_a_stage_whose_names_count_on_is_a_loop(names: list[str], line: str) -> None:
    model = nn.Sequential(OrderedDict((name, Rated(0.0)) for name in names)).eval()
    graph = eir.trace(model, (torch.randn(2, 8),))
    assert line in source_of(graph)
    same_function(graph, emitted(graph), torch.randn(2, 8))


def test_a_value_behind_a_layer_that_does_nothing() -> None:
    graph = eir.trace(Aliased().eval(), (torch.randn(2, 6),))
    assert "drop" not in source_of(graph)
    same_function(graph, emitted(graph), torch.randn(3, 6))


def test_ties_and_buffers() -> None:
    tied = eir.trace(TiedHead().eval(), (torch.ones(2, 5, dtype=torch.long),))
    made = emitted(tied)
    assert made.get_parameter("head.weight") is made.get_parameter("embed.weight")
    assert "self.head.weight = self.embed.weight" in source_of(tied)
    graph = eir.trace(WithBuffers().eval(), (torch.randn(2, 6),))
    made = emitted(graph)
    assert torch.equal(made.get_buffer("table"), torch.arange(6)) and torch.equal(
        made.get_buffer("factor"), torch.tensor([1.5, 2.0, -3.0] * 2)
    )
    assert "table" not in made.state_dict() and "kept" in made.state_dict()
    same_function(graph, made, torch.randn(2, 6))


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_what_is_no_plain_chain(frontend: Frontend) -> None:
    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(4, 8)
    graph = eir.trace(model, (x,), frontend=frontend)
    made = emitted(graph)
    made.load_state_dict(graph.state_dict(), strict=True)
    wanted, table = model(x)
    found = made.eval()(x)
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(dict(found[1]), dict(table))  # nested as the network's own, whatever read it


def test_large_buffers_without_a_rule_are_refused(tmp_path: Path) -> None:
    model = WithBuffers()
    model.register_buffer("factor", torch.randn(2000, 6), persistent=False)
    graph = eir.trace(model.eval(), (torch.randn(2000, 6),))
    with pytest.raises(eir.EmitError, match=r"the buffer 'factor' \(12,000 numbers\) is in no state dict"):
        eir.save(graph, tmp_path / "net.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_half_precision_is_kept() -> None:
    graph = eir.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16().eval(),
                      (torch.randn(2, 4).bfloat16(),))  # fmt: skip
    assert "self.to(torch.bfloat16)" in source_of(graph)
    assert next(emitted(graph).parameters()).dtype == torch.bfloat16


@pytest.mark.slow
def test_what_has_no_forward_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(
        eir.EmitError, match="was read without its network, so there is no forward to write; pass --arch"
    ):
        source_of(eir.load(tmp_path / "bare.pt"))
    eir.save(eir.trace(network(), input_shape=((1, 3, 16, 16),)), tmp_path / "net.onnx")
    with pytest.raises(
        eir.EmitError, match="Python source is written for networks from PyTorch; this graph is ONNX's"
    ):
        source_of(eir.load(tmp_path / "net.onnx"))


def hostile(change: str) -> Graph:
    """A graph as from a file, with something in it that would run, or break out of its string."""
    graph = eir.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.randn(2, 4),))
    graph.origin = Origin()
    nodes = graph.nodes
    relu = next(node for node in nodes if node.op == "nn.ReLU")
    if change == "function":
        node = Node("bad", "os.system", ("true",), kind="function")
        graph._link(node, nodes[1])
        node.args = (relu.args[0],)
        nodes[-1].args = (node.output,)
        graph._unlink(node)
        graph._link(node, nodes[-2])
    elif change == "keyword":
        relu.kwargs = {"x=print('hi')": 1}
    elif change == "attribute":
        relu.attributes = {"inplace": "x'); print('hi'"}
    elif change == "input":
        nodes[0].op = "x): pass\nprint('hi')\nasync def f("
    elif change == "name":
        linear = next(node for node in nodes if node.op == "nn.Linear")
        graph.weights = Weights(
            {
                name.replace("0.", "a b."): w.renamed(name.replace("0.", "a b."))
                for name, w in graph.weights.items()
            }
        )
        linear.scope = "a b"
        linear.weights = {role: f"a b.{role}" for role in linear.weights}
    elif change == "dunder":
        node = Node("bad", "getattr", (relu.output, "__class__"), kind="function")
        graph._link(node, relu)
        nodes[-1].args = (node.output,)
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("function", "the network calls os.system, which is not a function of torch"),
        ("keyword", "is not a name in Python, so it cannot be written as source"),
        ("input", "is not a name in Python, so it cannot be written as source"),
        ("name", "the attribute 'a b' is not a name in Python"),
        ("dunder", "which is not a plain tensor attribute"),
    ],
)
def test_what_a_file_may_not_say(change: str, message: str) -> None:
    with pytest.raises(eir.EmitError, match=message):
        source_of(hostile(change), check=False)


def test_a_file_s_name_cannot_end_the_docstring(tmp_path: Path) -> None:
    graph = hostile("")
    graph.name = "None"
    (path,) = eir.save(graph, tmp_path / 'a"""; print(1); """.py', check=False)
    text = path.read_text()
    assert 'torch.load("model.pt")' in text and network_of(text) == "Network" and "print" not in text


def test_strings_stay_strings(capsys: pytest.CaptureFixture[str]) -> None:
    text = source_of(hostile("attribute"), check=False)
    ast.parse(text)
    run_source(text, network_of(text))
    assert capsys.readouterr().out == ""


def test_the_check_finds_a_difference() -> None:
    graph = eir.trace(network(14), input_shape=((1, 3, 16, 16),))
    text = source_of(graph)
    with pytest.raises(eir.EmitError, match="computes other outputs than the graph's module"):
        check_source(text.replace("F.relu(out)", "out"), "CifarResNet", graph)
    with pytest.raises(eir.EmitError, match=r"does not have the state dict's names and shapes: fc\.weight"):
        check_source(text.replace("self.fc", "self.head"), "CifarResNet", graph)
    with pytest.raises(eir.EmitError, match="the written source does not run: NameError"):
        check_source(text.replace("self.bn2(", "bn2("), "CifarResNet", graph)
