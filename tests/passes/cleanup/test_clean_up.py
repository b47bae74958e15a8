"""Clean-up passes on traced networks: what goes, what stays though it looks idle; structure and function stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig

import elastic_ir as eir
from elastic_ir.analysis.effects import effect_of
from elastic_ir.analysis.extents import Open
from elastic_ir.errors import EmitError, PlanError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.passes import CommonSubexpressions, DeadCode, FoldConstants, Pipeline, RemoveIdentities
from elastic_ir.zoo import cifar_resnet

ALL = "fold-constants,remove-identities,cse,dce"


def text(graph: Graph) -> str:
    """The nodes as they are printed, without what layers record and where they run."""
    lines = str(graph).partition("nodes\n")[2].splitlines()
    return "\n".join(
        re.sub(r" \{.*\}| in \S+|, mode='constant', value=None", "", line.strip()) for line in lines
    )


def trace(model: nn.Module, *shape: int) -> Graph:
    torch.manual_seed(0)
    return eir.trace(model.eval(), (torch.randn(shape or (2, 3, 8, 8)),))


class Untidy(nn.Module):
    """A little of everything: a dead branch, sizes, sums of equals, and what does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dead, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.none, self.drop, self.same = nn.Dropout(0.0), nn.Dropout(0.1), nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.conv(x)
        self.norm(self.dead(x)).mul(2).add_(1)
        torch._assert(x.ndim == 4, "four axes")  # type: ignore[no-untyped-call]
        width = x.shape[1] * 2
        y = self.same(self.drop(self.none(F.relu(x) + F.relu(x))))
        y = y.view(y.shape[0], width // 2, -1).mean(-1)
        return self.head(F.pad(y, (0, 0)))


def test_everything_at_once() -> None:
    graph = trace(Untidy())
    clean = Pipeline.parse(f"{ALL}{{weights}}").run(graph, verify_each=True)
    assert (
        text(clean)
        == """\
%x = input() : f32[2, 3, 8, 8]
%conv = nn.Conv2d(%x) : f32[2, 4, 8, 8]
%relu = torch.nn.functional.relu(%conv, inplace=False) : f32[2, 4, 8, 8]
%add = operator.add(%relu, %relu) : f32[2, 4, 8, 8]
%getattr = getattr(%add, 'shape')
%getitem = operator.getitem(%getattr, 0)
%view = method.view(%add, %getitem, 4, -1) : f32[2, 4, 64]
%mean = method.mean(%view, -1) : f32[2, 4]
%head = nn.Linear(%mean) : f32[2, 2]
%output = output(%head) : f32[2, 2]"""
    )
    assert list(clean.weights) == ["conv.weight", "conv.bias", "head.weight", "head.bias"]
    assert [line["drift"] for line in clean.history.verified] == [0.0] * 4
    images = torch.randn(5, 3, 6, 6)  # neither the batch nor the sides were folded
    torch.testing.assert_close(clean.to_module().eval()(images), graph.to_module().eval()(images))


def test_dead_code() -> None:
    graph = trace(Untidy())
    clean = DeadCode().run(graph)
    gone = {node.name for node in graph} - {node.name for node in clean}
    assert gone == {"dead", "norm", "mul_1", "add_"} and "%_assert = torch._assert(%eq" in text(clean)
    assert list(clean.weights) == list(graph.weights)
    told = DeadCode().summary(clean) or ""
    assert told == "took out 4 nodes; nothing uses 7 weights (dead.weight, ...); dce{weights} drops them"
    assert clean.to_module().state_dict().keys() == graph.to_module().state_dict().keys()
    assert (
        DeadCode().summary(DeadCode().run(trace(cifar_resnet(14, width=2), 1, 3, 8, 8))) == "nothing is dead"
    )


class Effects(nn.Module):
    """What is not read by a name, and is no dead code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.act = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> Any:
        y = x * 2
        y[0].mul_(3)  # a view of y
        z = y.view(-1)
        self.act(z)  # writes into y
        self.norm(y + 1)  # its statistics are read below
        torch.rand_like(x)  # others draw from the same generator
        self.drop(y)
        x.neg_()  # the caller sees it
        return F.batch_norm(y, self.norm.running_mean, self.norm.running_var)


def test_what_has_effects_stays() -> None:
    graph = trace(Effects(), 3, 4)
    clean = DeadCode().run(graph)
    assert text(clean) == text(graph)
    effects = {node.name: effect_of(node) for node in graph if effect_of(node)}
    assert effects == {
        "x": "effect", "mul_": "in place", "act": "in place", "norm": "state", "rand_like": "random",
        "drop": "random", "neg_": "in place", "output": "effect",
    }  # fmt: skip


class Twins(nn.Module):
    """Equal and nearly equal computations."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.drop = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.Dropout(0.5),
        )
        self.tied = nn.Linear(4, 4)
        self.tied.weight, self.tied.bias = self.one.weight, self.one.bias

    def forward(self, x: torch.Tensor) -> Any:
        a, b, c = self.one(x), self.two(x), self.tied(x)  # c is a
        d, e = self.norm(a), self.norm(a)  # statistics move twice in training
        f, g = self.drop(x), self.drop(x)
        h, i = x + 1, x + 1.0
        j, k = x * 2, x * 2  # one is written into
        k.add_(1)
        s = x.shape[0] + x.shape[0]
        return a + b + c, d + e, f + g, h + i, j + k, torch.rand_like(x) + torch.rand_like(x), s


def test_common_subexpressions() -> None:
    graph = trace(Twins(), 3, 4)
    clean = CommonSubexpressions().run(graph)
    assert CommonSubexpressions().summary(clean) == "merged 3 nodes with earlier ones"
    assert (
        text(clean)
        == """\
%x = input() : f32[3, 4]
%one = nn.Linear(%x) : f32[3, 4]
%two = nn.Linear(%x) : f32[3, 4]
%norm = nn.BatchNorm1d(%one) : f32[3, 4]
%norm_1 = nn.BatchNorm1d(%one) : f32[3, 4]
%drop = nn.Dropout(%x) : f32[3, 4]
%drop_1 = nn.Dropout(%x) : f32[3, 4]
%add = operator.add(%x, 1) : f32[3, 4]
%add_1 = operator.add(%x, 1.0) : f32[3, 4]
%mul = operator.mul(%x, 2) : f32[3, 4]
%mul_1 = operator.mul(%x, 2) : f32[3, 4]
%add_ = method.add_(%mul_1, 1) : f32[3, 4]
%getattr = getattr(%x, 'shape')
%getitem = operator.getitem(%getattr, 0)
%add_2 = operator.add(%getitem, %getitem)
%add_3 = operator.add(%one, %two) : f32[3, 4]
%add_4 = operator.add(%add_3, %one) : f32[3, 4]
%add_5 = operator.add(%norm, %norm_1) : f32[3, 4]
%add_6 = operator.add(%drop, %drop_1) : f32[3, 4]
%add_7 = operator.add(%add, %add_1) : f32[3, 4]
%add_8 = operator.add(%mul, %mul_1) : f32[3, 4]
%rand_like = torch.rand_like(%x) : f32[3, 4]
%rand_like_1 = torch.rand_like(%x) : f32[3, 4]
%add_9 = operator.add(%rand_like, %rand_like_1) : f32[3, 4]
%output = output((%add_4, %add_5, %add_6, %add_7, %add_8, %add_9, %add_2))"""
    )
    made = clean.to_module()
    assert made.get_parameter("tied.weight") is made.get_parameter("one.weight")
    x = torch.randn(7, 4)
    for ours, theirs in zip(made.eval()(x)[:5], graph.to_module().eval()(x)[:5], strict=True):
        torch.testing.assert_close(ours, theirs)


class Sizes(nn.Module):
    """Sizes that the network fixes, and sizes that follow from its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        n, c, h, w = y.shape
        y = y.reshape(n, 2, c // 2, h * w).transpose(1, 2)
        z = y.mean((2, 3))
        k = self.head.weight.shape[1] + y.dim() + len((1, 2))
        return self.head(z.view(z.size(0), -1)) * k, y.shape[1] * h


SIZES: dict[Open, str] = {
    "all": "method.reshape(%conv, %getitem, 2, 3, %mul)",
    "batch": "method.reshape(%conv, %getitem, 2, 3, 64)",
    "none": "method.reshape(%conv, 2, 2, 3, 64)",
}


@pytest.mark.parametrize("axes", SIZES)
def test_fold_constants(axes: Open) -> None:
    graph = trace(Sizes())
    clean = FoldConstants(open=axes).run(graph)
    assert SIZES[axes] in text(clean)
    assert "operator.mul(%head, 9)" in text(clean)
    module, model = clean.to_module().eval(), graph.to_module().eval()
    for shape in ([(2, 3, 8, 8)], [(5, 3, 8, 8)], [(5, 3, 4, 6)])[: {"all": 3, "batch": 2, "none": 1}[axes]]:
        x = torch.randn(*shape)
        for ours, theirs in zip(module(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_an_unknown_word_for_open_axes() -> None:
    with pytest.raises(PlanError, match="open is all, batch or none, not 'some'"):
        FoldConstants(open="some").run(trace(Sizes()))  # type: ignore[arg-type]


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised in every run (Qiao et al. 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def standardised() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(Standardised(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*layers))


def test_fold_what_is_computed_of_weights() -> None:
    graph = trace(standardised())
    assert text(FoldConstants().run(graph)) == text(graph)
    clean = FoldConstants(weights=True).run(graph)
    assert len(graph) - len(clean) == 12 and list(clean.weights) == list(graph.weights)
    assert "torch.conv2d(%_0, @1.0.0.weight, @1.0.0.bias," in text(clean)
    assert clean.depth == graph.depth == 4 and [len(stage) for stage in clean.stages] == [3]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(clean.to_module().eval()(x), graph.to_module().eval()(x))
    deeper = eir.stretch(clean, to_stages=(5,))
    twin = eir.stretch(graph, to_stages=(5,))
    torch.testing.assert_close(deeper.to_module().eval()(x), twin.to_module().eval()(x))
    with pytest.raises(EmitError, match="fold-constants has fixed what was computed of weights"):
        clean.remap_optimizer_state(*adam(standardised()))


def adam(model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return optimizer.state_dict(), [name for name, _ in model.named_parameters()]


def test_masked_weights_are_not_computed_with() -> None:
    model = standardised()
    masks = {"1.1.0.weight": torch.ones(4, 4, 3, 3).index_fill(0, torch.tensor([1]), 0)}
    graph = eir.trace(model.eval(), (torch.randn(1, 3, 8, 8),), masks=masks)
    clean = FoldConstants(weights=True).run(graph)
    assert clean.history.reports["fold-constants"]["weights"] == ["1.0.0.weight", "1.2.0.weight"]
    assert clean.masks().keys() == masks.keys()


class Idle(nn.Module):
    """Shapes that stay and shapes that only seem to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.a(x).reshape(x.shape[0], -1, 4)  # x.shape is another tensor's
        x = x.reshape(x.shape[0], x.size(1), -1)  # goes
        x = self.b(x.contiguous())  # goes: nothing views it before the layer
        x = x.transpose(1, 2).contiguous().view(-1, 8)  # stays: the view needs it
        x = F.pad(x, (0, 0, 0, 0)).flatten(1)  # both go
        return F.dropout(self.drop(x), 0.2, self.training).contiguous()


def test_identities() -> None:
    graph = trace(Idle(), 1, 2, 4)
    clean = RemoveIdentities().run(graph)
    assert RemoveIdentities().summary(clean) == (
        "took out 1 reshape, 1 contiguous, 1 pad, 1 flatten, 2 dropout; this is for inference"
    )
    assert (
        text(DeadCode().run(clean))
        == """\
%x = input() : f32[1, 2, 4]
%a = nn.Linear(%x) : f32[1, 2, 4]
%getattr = getattr(%x, 'shape')
%getitem = operator.getitem(%getattr, 0)
%reshape = method.reshape(%a, %getitem, -1, 4) : f32[1, 2, 4]
%b = nn.Linear(%reshape) : f32[1, 2, 4]
%transpose = method.transpose(%b, 1, 2) : f32[1, 4, 2]
%contiguous = method.contiguous(%transpose) : f32[1, 4, 2]
%view = method.view(%contiguous, -1, 8) : f32[1, 8]
%contiguous_1 = method.contiguous(%view) : f32[1, 8]
%output = output(%contiguous_1) : f32[1, 8]"""
    )
    x = torch.randn(3, 2, 4)
    torch.testing.assert_close(clean.to_module().eval()(x), graph.to_module().eval()(x))
    kept = RemoveIdentities(dropout=False).run(graph)
    assert sum("dropout" in node.op.lower() for node in kept) == 2
    assert (RemoveIdentities(dropout=False).summary(kept) or "").endswith("; dropout stays")


def written_in_place(graph: Graph) -> list[Node]:
    return [node for node in graph if effect_of(node) == "in place"]


NETS: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: torchvision.models.ConvNeXt(
        [CNBlockConfig(12, 24, 2), CNBlockConfig(24, 48, 3), CNBlockConfig(48, None, 2)], num_classes=5
    ),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "resnetv2": lambda: timm.create_model(
        "resnetv2_50", layers=(2, 2, 3), channels=(32, 64, 96), num_classes=5
    ),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5),
}


@pytest.mark.parametrize("name", [n if n == "vit" else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_networks_stay_what_they_are(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = 32 if name == "vit" else 64
    graph = eir.trace(NETS[name]().eval(), (torch.randn(1, 3, size, size),), frontend="fx")
    clean = Pipeline.parse(ALL).run(graph, verify_each=True)
    assert len(clean) < len(graph) and list(clean.weights) == list(graph.weights)
    assert len(written_in_place(clean)) == len(written_in_place(graph))
    again = clean.copy()
    again._structure = None
    assert [(s.name, len(s), s.period, s.shape) for s in again.stages] == [
        (s.name, len(s), s.period, s.shape) for s in graph.stages
    ]
    assert again.depth == graph.depth
    counts = [len(stage) + (1 if stage.blocks else 0) for stage in graph.stages]
    deeper, twin = (eir.stretch(each, to_stages=counts) for each in (clean, graph))
    x = torch.randn(2, 3, size, size)
    made, expected = deeper.to_module().eval(), twin.to_module().eval()
    assert list(made.state_dict()) == list(expected.state_dict())
    torch.testing.assert_close(made(x), expected(x))
    eir.save(deeper, tmp_path / "deep.pt")
    reread = eir.load(tmp_path / "deep.pt")
    assert reread.depth == twin.depth and [len(stage) for stage in reread.stages] == counts
    torch.testing.assert_close(reread.to_module().eval()(x), expected(x))


@pytest.mark.parametrize("kind", [FoldConstants, RemoveIdentities, CommonSubexpressions, DeadCode])
def test_torch_export_is_refused(kind: Any, tmp_path: Path) -> None:
    graph = eir.trace(cifar_resnet(14, width=2).eval(), (torch.randn(1, 3, 8, 8),), frontend="export")
    with pytest.raises(PlanError, match=f"whose layers {kind.name} cannot change; export it as ONNX"):
        kind().run(graph)
    torch.save(cifar_resnet(14, width=2).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(PlanError, match=f"{kind.name} has to see what reads what; pass --arch"):
        kind().run(eir.load(tmp_path / "bare.pt"))
    assert kind.preserves_function and not kind.needs_structure
