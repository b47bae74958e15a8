"""Ghosts: nothing at factor 0, something at factor 1, one for each copy of a block, and no trace when they are gone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
import torchvision
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.errors import MaskError, PlanError, SourceError
from elastic_ir.passes import GhostSkips, GhostSoftness, Pass, Pipeline, RemoveGhosts
from elastic_ir.training import schedule_of
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.passes.digits import images, ticket, train

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cifar_resnet": (lambda: cifar_resnet(14, width=4), 16),
    "cifar_vgg": (lambda: cifar_vgg(13), 32),
    "open_lth_vgg": (lambda: cifar_vgg(13, names="open_lth"), 16),
    "resnet18": (torchvision.models.resnet18, 32),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 32),
    "timm_resnet26": (lambda: timm.create_model("resnet26"), 32),
    "timm_mobilenetv2": (lambda: timm.create_model("mobilenetv2_035"), 32),
}
PIPELINES: dict[str, list[Pass]] = {
    "skips": [GhostSkips()],
    "softness": [GhostSoftness()],
    "skips of soft": [GhostSoftness(kind="mish"), GhostSkips(start=0.5)],
    "soft skips": [GhostSkips(decay="linear"), GhostSoftness(kind="swish")],
}
#: All of them on one network, and the two that are everything on each.
CASES = [("cifar_resnet", passes) for passes in PIPELINES] + [
    (name, passes)
    for number, name in enumerate(NETWORKS)
    for passes in [("soft skips", "skips of soft")[number % 2]]
    if name != "cifar_resnet"
]
COPIED = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case[0] == "mobilenet_v2"))
    for case in CASES
    if case[0] in ("cifar_resnet", "cifar_vgg", "mobilenet_v2")
]


def traced(name: str) -> tuple[nn.Module, eir.Graph, torch.Tensor]:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model = make()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # some networks begin with norms of scale 0, behind which nothing shows
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.randn(4, 3, size, size)
    model.train()
    model(x)  # statistics of the norms
    model.eval()
    return model, eir.trace(model, (x,)), x


@pytest.mark.parametrize(("name", "passes"), CASES)
@pytest.mark.everyday(2)
def test_nothing_at_the_end_of_the_schedule_and_no_trace_afterwards(name: str, passes: str) -> None:
    model, graph, x = traced(name)
    haunted = Pipeline(PIPELINES[passes]).run(graph)
    assert str(haunted) != str(graph) and not graph.edits.ghosts
    module = haunted.to_module().eval()
    assert isinstance(module, fx.GraphModule) and list(module.state_dict()) == list(model.state_dict())
    schedule, plain = schedule_of(haunted), model(x)
    with torch.no_grad():
        assert (module(x) - plain).abs().max() > 1e-3
        schedule.apply(module, 1.0)
        assert torch.equal(module(x), plain)
        back = RemoveGhosts().run(haunted)
        assert str(back) == str(graph) and not back.edits.ghosts
        made = back.to_module().eval()
        assert type(made) is type(model) and torch.equal(made(x), plain)
    for node, twin in zip(graph, back, strict=True):
        assert (repr(node.args), repr(node.kwargs)) == (repr(twin.args), repr(twin.kwargs))
        assert (node.kind, node.scope, node.origin) == (twin.kind, twin.scope, twin.origin)


@pytest.mark.parametrize(("name", "passes"), COPIED)
@pytest.mark.everyday(2)
def test_each_copy_of_a_block_has_ghosts_of_its_own(name: str, passes: str) -> None:
    _, graph, x = traced(name)
    counts = [len(stage) + bool(stage.blocks) for stage in graph.stages]
    haunted = Pipeline(PIPELINES[passes]).run(graph)
    deeper = eir.stretch(haunted, to_stages=counts)
    schedule, module = schedule_of(deeper), deeper.to_module().eval()
    assert len(schedule) > len(schedule_of(haunted))
    names = [name for name, weight in deeper.weights.items() if not weight.persistent]
    assert sorted(schedule.at(0)) == sorted(names) == sorted(set(names))
    assert set(names) <= set(dict(module.named_buffers()))
    plain = eir.stretch(graph, to_stages=counts)
    schedule.apply(module, 1)
    with torch.no_grad():
        assert torch.equal(module(x), plain.to_module().eval()(x))
    gone = RemoveGhosts().run(deeper)
    assert str(gone) == str(plain) and type(gone.to_module()) is type(plain.to_module())
    shorter = eir.squeeze(deeper, to_stages=[len(stage) for stage in graph.stages])
    assert str(shorter) == str(haunted) and schedule_of(shorter) == schedule_of(haunted)


@pytest.mark.parametrize(("name", "passes"), COPIED)
@pytest.mark.everyday(2)
def test_ghosts_survive_a_file(name: str, passes: str, tmp_path: Path) -> None:
    model, graph, x = traced(name)
    haunted = Pipeline(PIPELINES[passes]).run(graph)
    eir.save(haunted, tmp_path / "net.pt")
    model.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))  # plain for everyone else
    again = eir.load(tmp_path / "net.pt")
    assert schedule_of(again) == schedule_of(haunted) and again.depth == graph.depth
    assert [len(stage) for stage in again.stages] == [len(stage) for stage in graph.stages]
    assert str(again) == re.sub(" from @.*", "", str(haunted))  # what was read is the source now
    with torch.no_grad():
        assert torch.equal(again.to_module().eval()(x), haunted.to_module().eval()(x))
        gone = RemoveGhosts().run(again)
        assert str(gone) == str(graph)
        assert torch.equal(gone.to_module().eval()(x), model.eval()(x))
    assert type(gone.to_module()) is type(model)
    assert type(eir.load(tmp_path / "net.pt", arch=model).to_module()) is type(model)


@pytest.mark.parametrize("passes", PIPELINES)
@pytest.mark.slow
def test_trained_with_ghosts_and_without_them_afterwards(passes: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = cifar_resnet(14, width=8)
    graph = ticket(model)
    haunted = Pipeline([*PIPELINES[passes]]).run(graph)
    haunted = eir.load(_saved(haunted, tmp_path), arch=None)
    module, schedule = haunted.to_module(), schedule_of(haunted)
    losses = train(module, haunted, 24, lambda progress: schedule.apply(module, progress))
    assert sum(losses[-4:]) < sum(losses[:4]) and all(loss == loss for loss in losses)
    done = RemoveGhosts().run(eir.with_weights(haunted, module))
    x = images(64)[0]
    with torch.no_grad():
        assert torch.equal(done.to_module().eval()(x), module.eval()(x))
    assert not torch.equal(done.state_dict()["fc.weight"], model.state_dict()["fc.weight"])
    assert done.sparsity() == graph.sparsity() > 0.7
    for name, mask in graph.masks().items():
        assert torch.equal(mask, done.masks()[name])
        assert done.state_dict()[name][mask == 0].count_nonzero() == 0


def _saved(graph: eir.Graph, folder: Path) -> Path:
    eir.save(graph, folder / "net.pt")
    return folder / "net.pt"


@pytest.mark.slow
def test_onnx_after_removal_is_the_source_s(tmp_path: Path) -> None:
    _, graph, _ = traced("cifar_resnet")
    haunted = Pipeline.parse("ghost-skips,ghost-softness").run(graph)
    module = haunted.to_module()
    gone = RemoveGhosts().run(eir.with_weights(haunted, module))
    eir.save(gone, tmp_path / "gone.onnx")
    eir.save(graph, tmp_path / "source.onnx")
    found, wanted = (onnx.load(tmp_path / name) for name in ("gone.onnx", "source.onnx"))
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in wanted.graph.node]
    record = {entry.key: entry.value for entry in found.metadata_props}
    assert (
        "ghost-skips" in record["elastic_ir.pipeline"]
    )  # what ran is told; the network itself holds no trace
    for model in (found, wanted):
        del model.metadata_props[:]
    assert found.SerializeToString() == wanted.SerializeToString()
    assert b"ghost" not in found.SerializeToString()
    eir.save(gone, tmp_path / "gone.pt")
    assert b"ghost_s" not in (tmp_path / "gone.pt").read_bytes()


@pytest.mark.slow
def test_the_state_of_an_unfinished_training_is_kept() -> None:
    _, graph, x = traced("cifar_resnet")
    haunted = GhostSkips().run(graph)
    module, schedule = haunted.to_module().eval(), schedule_of(haunted)
    schedule.apply(module, 0.25)
    resumed = eir.with_weights(haunted, module).to_module().eval()
    assert torch.equal(resumed(x), module(x))
    assert float(resumed.get_buffer("layer1.1.conv1.ghost_skip")) == pytest.approx(0.5)


def test_softness_comes_nearer_to_relu() -> None:
    x = torch.linspace(-3, 9, 101)
    model = nn.Sequential(nn.Linear(101, 101), nn.ReLU6(inplace=True)).eval()
    model.load_state_dict({"0.weight": torch.eye(101), "0.bias": torch.zeros(101)})
    graph = eir.trace(model, (x[None],))
    haunted = GhostSoftness(decay="geometric", share=1.0).run(graph)
    module, schedule = haunted.to_module(), schedule_of(haunted)
    apart = []
    for progress in (0.0, 0.5, 0.99, 1.0):
        schedule.apply(module, progress)
        apart.append(float((module(x[None]) - x.clamp(0, 6)).abs().max()))
    assert apart[0] > 0.27 and apart == sorted(apart, reverse=True) and apart[-1] == 0
    schedule.apply(module, 0.5)
    assert torch.allclose(module(x[None])[0], (x * torch.sigmoid(10 * x)).clamp(max=6), atol=1e-6)
    mish = GhostSoftness(kind="mish").run(graph).to_module()
    torch.testing.assert_close(mish(x[None])[0], nn.functional.mish(x).clamp(max=6))


def test_softness_for_good() -> None:
    model, graph, x = traced("resnet18")
    kept = GhostSoftness(kind="swish", keep=True).run(graph)
    made = kept.to_module().eval()
    assert type(made) is not type(model) or all(
        not isinstance(part, nn.ReLU) for part in made.modules()
    )  # one ReLU for two calls becomes two layers
    twin = torchvision.models.resnet18()
    twin.load_state_dict(model.state_dict())
    for part in list(twin.modules()):
        if hasattr(part, "relu"):
            part.relu = nn.SiLU()
    torch.testing.assert_close(made(x), twin.eval()(x))
    assert len(schedule_of(kept)) == 0 and str(RemoveGhosts().run(kept)) == str(kept)
    functional = GhostSoftness(kind="mish", keep=True).run(traced("cifar_resnet")[1])
    assert "functional.mish" in str(functional) and "relu" not in str(functional)


@pytest.mark.parametrize("inplace", ["keyword", "operand", "name", "method"])
def test_activations_in_place(inplace: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.fc(x)
            if inplace == "keyword":
                return nn.functional.relu(x, inplace=True)
            if inplace == "operand":
                return nn.functional.relu(x, True)
            return torch.relu_(x) if inplace == "name" else x.relu_()

    torch.manual_seed(0)
    model, x = Net(), torch.randn(7, 5)
    graph = eir.trace(model, (x,))
    haunted = Pipeline([GhostSoftness(), GhostSkips(linear=True)]).run(graph)
    module = haunted.to_module()
    y = model.fc(x)
    z = y + nn.functional.group_norm(x, 1)
    torch.testing.assert_close(module(x), z * torch.sigmoid(z))
    module(x).sum().backward()  # nothing that the gradient needs was overwritten
    back = RemoveGhosts().run(haunted)
    assert str(back) == str(graph) and type(back.to_module()) is Net


def test_skips_around_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
    )
    model.eval()
    x = torch.randn(2, 3, 5, 5)
    haunted = GhostSkips(start=0.5).run(eir.trace(model, (x,)))
    assert schedule_of(haunted).at(0) == {"0.ghost_skip": 0.5, "3.ghost_skip": 0.5}

    def normed(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return (
            (x.flatten(1) - flat.mean(1, True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        ).view_as(x)

    y = (model[1](model[0](x)) + 0.5 * normed(x)).relu()
    torch.testing.assert_close(haunted.to_module().eval()(x), model[4](model[3](y) + 0.5 * normed(y)))


@pytest.mark.slow
def test_skips_do_not_add_up_in_a_residual_network() -> None:
    """Each block would double its input: 30 skips would make the last features thousands of times as large."""
    torch.manual_seed(0)
    model = cifar_resnet(32, width=8).train()
    graph = eir.trace(model.eval(), (torch.zeros(1, 3, 16, 16),))
    x = torch.randn(8, 3, 16, 16)
    plain, haunted = (g.to_module().train()(x).std() for g in (graph, GhostSkips().run(graph)))
    assert haunted < 4 * plain


def test_summaries() -> None:
    graph = traced("cifar_resnet")[1]
    told: list[str | None] = []
    Pipeline.parse("ghost-skips{share=0.25},ghost-softness,remove-ghosts,remove-ghosts").run(
        graph, lambda item, made, _: told.append(item.summary(made))
    )
    assert told == [
        "10 skips, cosine to 0 over 0.25 of the training", "13 activations are pswish until 0.5 of the training",
        "took out 13 of kind soft, 10 of kind skip", "there are no ghosts",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (GhostSkips(decay="geometric"), "decay is linear, cosine or step, not 'geometric'"),  # type: ignore[arg-type]
        (GhostSkips(share=0), "share=0 is not a share of the training; it is above 0, and at most 1"),
        (GhostSoftness(kind="gelu"), "kind is pswish, swish or mish, not 'gelu'"),  # type: ignore[arg-type]
        (GhostSoftness(keep=True), "keep takes kind=swish or kind=mish"),
        (GhostSoftness(beta=-1), "beta=-1 to=100: beta grows towards ReLU, from above 0"),
    ],
)
def test_options_that_mean_nothing(item: Pass, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        item.run(traced("cifar_resnet")[1])


@pytest.mark.slow
def test_networks_that_are_refused(tmp_path: Path) -> None:
    model, graph, x = traced("cifar_resnet")
    exported = eir.trace(model, (x,), frontend="export")
    eir.save(graph, tmp_path / "net.onnx")
    from_onnx = eir.load(tmp_path / "net.onnx")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    names = eir.load(tmp_path / "plain.pt")
    for item in (GhostSkips(), GhostSoftness()):
        with pytest.raises(PlanError, match=r"was traced by torch.export"):
            item.run(exported)
        with pytest.raises(
            PlanError, match=f"is an ONNX graph, and {item.name} inserts operations of PyTorch"
        ):
            item.run(from_onnx)
        with pytest.raises(PlanError, match="was read without its network"):
            item.run(names)
    with pytest.raises(PlanError, match="has ghost skips already; run remove-ghosts first"):
        Pipeline([GhostSkips(), GhostSkips()]).run(graph)
    with pytest.raises(PlanError, match="has soft activations already; run remove-ghosts first"):
        Pipeline([GhostSoftness(), GhostSoftness()]).run(graph)
    line = eir.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()), (x,))
    with pytest.raises(PlanError, match="no convolution of Sequential keeps its input's shape"):
        GhostSkips().run(line)
    with pytest.raises(PlanError, match="Sequential has no ReLU that could be softened"):
        GhostSoftness().run(line)


def test_a_schedule_of_another_module_is_refused() -> None:
    model, graph, _ = traced("cifar_resnet")
    schedule = schedule_of(GhostSkips().run(graph))
    with pytest.raises(PlanError, match=r"CifarResNet has no buffer 'layer1.0.conv1.ghost_skip' to set"):
        schedule.apply(model, 0.5)
    with pytest.raises(PlanError, match=r"progress=1.5 is outside the training"):
        schedule.apply(model, 1.5)
    schedule_of(graph).apply(model, 0.5)  # without ghosts there is nothing to set


def test_a_damaged_record_is_refused() -> None:
    haunted = GhostSkips().run(traced("cifar_resnet")[1])
    records: tuple[Any, ...] = (
        {"skip": {"start": 1}},
        {"skip": {"start": 1, "end": 0, "shape": "no"}},
        [1],
        {"skip": 7},
    )
    for record in records:
        haunted.edits = dataclasses.replace(haunted.edits, ghosts=record)
        with pytest.raises(SourceError, match="the schedule of the ghosts of CifarResNet is damaged"):
            schedule_of(haunted)
    haunted.edits = dataclasses.replace(haunted.edits, ghosts={})
    with pytest.raises(SourceError, match="has ghosts of kind 'skip', and no record of how they fade"):
        schedule_of(haunted)


@pytest.mark.slow
def test_wrapped_modules_are_reached() -> None:
    haunted = GhostSkips().run(traced("cifar_resnet")[1])
    module, schedule = haunted.to_module(), schedule_of(haunted)
    schedule.apply(nn.DataParallel(module), 1)
    assert {float(module.get_buffer(name)) for name in schedule.at(1)} == {0.0}
    schedule.apply(torch.compile(module), 0)  # type: ignore[arg-type]
    assert {float(module.get_buffer(name)) for name in schedule.at(1)} == {1.0}


def test_weights_that_do_not_fit() -> None:
    model = cifar_resnet(14, width=8)
    graph = ticket(model)
    state = graph.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    bad: list[tuple[dict[str, Any], str]] = [
        (fitting, "do not fit CifarResNet: fc.bias is missing"),
        ({**state, "more": torch.ones(1)}, "more is unknown to it"),
        ({**state, "fc.bias": torch.ones(3)}, r"fc.bias is \[3\], the graph has \[10\]"),
        ({**state, "fc.bias": torch.ones(10).half()}, "fc.bias is float16, the graph has float32"),
        ({**state, "fc.bias": 3}, "'fc.bias' of the trained weights is not a tensor"),
    ]
    for given, message in bad:
        with pytest.raises(SourceError, match=message):
            eir.with_weights(graph, given)
    dense = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    with pytest.raises(
        MaskError, match=r"pruned weights of 'layer1.0.conv1.weight' are not zero after the training"
    ):
        eir.with_weights(graph, dense)
    before = str(graph)
    assert str(eir.with_weights(graph, state)) == before == str(graph)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    graph = eir.trace(model, (torch.randn(2, 4),))
    module = graph.to_module()
    module.load_state_dict(dict.fromkeys(module.state_dict(), torch.eye(4)))
    made = eir.with_weights(graph, module).to_module()
    assert len(list(made.parameters())) == 1 and torch.equal(next(made.parameters()), torch.eye(4))
    apart = {"0.weight": torch.eye(4), "2.weight": torch.ones(4, 4)}
    with pytest.raises(SourceError, match=r"0.weight and 2.weight are one tied weight there, but differ"):
        eir.with_weights(graph, apart)


def test_options_reach_the_record() -> None:
    made = Pipeline.parse("ghost-skips{start=0.5 share=1 decay=linear}").run(traced("cifar_resnet")[1])
    (fading,) = schedule_of(made).fadings
    assert dataclasses.astuple(fading.decay) == (0.5, 0.0, "linear", 1.0)
    assert made.history.pipeline == ("ghost-skips{start=0.5 decay=linear share=1.0}",)
