"""Scales of layers: a better first step, masks untouched, and bad data refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.passes import LayerwiseRescale, Pipeline
from elastic_ir.tickets import enforce
from elastic_ir.training import GradInit, find_scales
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.passes.digits import batches, ticket

QUICK = GradInit(steps=12, lr=0.03)


def loss_after_one_step(graph: eir.Graph, size: int, lr: float = 0.1) -> float:
    """Of a held batch, after one step of SGD on another; norms on the batch's statistics."""
    module = graph.to_module().train()
    data = batches(batch=64, size=size)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    with enforce(module, optimizer, graph.masks()):
        x, y = data[0]
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        x, y = data[3]
        return nn.functional.cross_entropy(module(x), y).item()


@pytest.mark.parametrize(
    ("make", "size", "settings"),
    [
        pytest.param(lambda: cifar_resnet(14, width=8), 8, QUICK, id="resnet"),
        pytest.param(
            lambda: cifar_vgg(13, width=32), 32, GradInit(steps=5, lr=0.03), id="vgg", marks=pytest.mark.slow
        ),
    ],
)
def test_the_first_step_gets_better_and_masks_stay(
    make: Callable[[], nn.Module], size: int, settings: GradInit
) -> None:
    torch.manual_seed(0)
    graph = ticket(make(), 0.9, size)
    scales = find_scales(graph, batches(192, 32, size), settings=settings)
    better = LayerwiseRescale(scales=scales).run(graph)
    before_it, after_it = (loss_after_one_step(made, size) for made in (graph, better))
    assert after_it < before_it - 0.1
    assert len({round(scale, 4) for scale in scales.values()}) > len(scales) // 4
    assert set(scales) == {name for name, weight in graph.weights.items() if weight.is_parameter}
    before, after = graph.state_dict(masked=False), better.state_dict(masked=False)
    for name, scale in scales.items():
        torch.testing.assert_close(after[name], before[name] * scale)
    assert graph.masks().keys() == better.masks().keys()
    for name, mask in graph.masks().items():
        assert torch.equal(mask, better.masks()[name])
        assert better.state_dict()[name][mask == 0].count_nonzero() == 0
    buffers = [name for name, weight in graph.weights.items() if not weight.is_parameter]
    assert buffers and all(torch.equal(before[name], after[name]) for name in buffers)
    assert type(better.to_module()) is type(graph.to_module())


def test_the_objective_is_the_loss_after_the_step() -> None:
    """One linear layer without constraint: the gradient of the scale by hand gives Adam's first sign."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    graph = eir.trace(model, (torch.randn(4, 3),))
    x, y = torch.randn(16, 3), torch.randint(2, (16,))
    settings = GradInit(steps=1, lr=0.01, gamma=1e9, eta=0.5, normalise=False)
    scale = torch.ones((), requires_grad=True)
    weight = graph.state_dict()["0.weight"]
    theta = scale * weight
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(x @ theta.T, y), theta, retain_graph=True)
    after = nn.functional.cross_entropy(x @ (theta - 0.5 * grad).T, y)
    (slope,) = torch.autograd.grad(after, scale)
    found = find_scales(graph, [(x, y)], settings=settings)
    assert found["0.weight"] == pytest.approx(1 - 0.01 * float(slope.sign()), abs=1e-6)


@pytest.mark.slow
def test_the_bound_of_the_gradient_comes_first() -> None:
    torch.manual_seed(0)
    graph = ticket(cifar_resnet(8, width=4))

    def norm(of: eir.Graph) -> float:
        module = of.to_module().train()
        x, y = batches(64, 64)[0]
        loss = nn.functional.cross_entropy(module(x), y)
        grads = torch.autograd.grad(loss, list(module.parameters()))
        masks, names = of.masks(), [name for name, _ in module.named_parameters()]
        parts = [g * masks[n] if n in masks else g for n, g in zip(names, grads, strict=True)]
        return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())

    settings = GradInit(steps=20, lr=0.03, gamma=0.01)
    bound = LayerwiseRescale(scales=find_scales(graph, batches(64, 32), settings=settings)).run(graph)
    assert norm(bound) < 0.8 * norm(graph)
    assert all(scale >= 0.01 for scale in bound.history.reports["layerwise-rescale"].values())


def test_adam_and_another_loss() -> None:
    graph = ticket(cifar_resnet(8, width=4))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, nn.functional.one_hot(labels, 10).float())

    found = find_scales(graph, iter(batches(64, 32)), loss, GradInit(steps=3, optimizer="adam", eta=1e-3))
    assert any(scale != 1 for scale in found.values())
    assert found == find_scales(graph, batches(64, 32), loss, GradInit(steps=3, optimizer="adam", eta=1e-3))


def _file(folder: Path, form: str, **arrays: Any) -> Path:
    path = folder / f"digits.{form}"
    if form == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_data_from_a_file(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = ticket(cifar_resnet(8, width=4))
    x, y = batches(64, 64)[0]
    path = _file(tmp_path, form, inputs=x.numpy(), labels=y.numpy())
    told: list[str | None] = []
    made = Pipeline.parse(f'layerwise-rescale{{data="{path}" batch=32 steps=3}}').run(
        graph, lambda item, after, _: told.append(item.summary(after))
    )
    scales = find_scales(graph, batches(64, 32), settings=GradInit(steps=3))
    assert made.history.reports["layerwise-rescale"] == scales
    assert told[0] is not None and told[0].startswith(f"{len(scales)} tensors scaled by 0.9")


X, Y = np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("form", "arrays", "message"),
    [
        (
            "npz",
            {"x": X, "labels": Y},
            "digits.npz holds no 'inputs' but 'x', 'labels'; call the examples 'inputs'",
        ),
        (
            "npz",
            {"inputs": X, "labels": X},
            r"the labels are float32\[4, 3, 8, 8\], not a row of class numbers",
        ),
        ("safetensors", {"inputs": X, "labels": Y[:3]}, r"3 labels do not fit inputs of \[4, 3, 8, 8\]"),
        (
            "npz",
            {"inputs": X[:, :1], "labels": Y},
            r"do not run on inputs of \[4, 1, 8, 8\] and targets of \[4\]",
        ),
        ("npz", {"inputs": X, "labels": Y + 10}, r"do not run on inputs of \[4, 3, 8, 8\] .*out of bounds"),
        ("npz", {"inputs": X * np.nan, "labels": Y}, "the loss at step 0 of the search for scales is nan"),
    ],
)
def test_data_that_does_not_fit(form: str, arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _file(tmp_path, form, **arrays)
    with pytest.raises((SourceError, PlanError), match=message):
        LayerwiseRescale(data=str(path), steps=1).run(ticket(cifar_resnet(8, width=4)))


def test_files_that_are_none(tmp_path: Path) -> None:
    graph = ticket(cifar_resnet(8, width=4))
    for name, content, message in [
        ("a.npz", b"not a zip", "a.npz cannot be read as inputs: "),
        (
            "a.safetensors",
            b"\xff" * 20,
            "a.safetensors is not a .safetensors file: its first 8 bytes ask for a header",
        ),
        ("a.csv", b"1,2", "a.csv is none of .npy, .npz and .safetensors, which inputs are read from"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=message):
            LayerwiseRescale(data=str(tmp_path / name)).run(graph)
    with pytest.raises(SourceError, match=r"none.npz does not exist"):
        LayerwiseRescale(data=str(tmp_path / "none.npz")).run(graph)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (LayerwiseRescale(), "needs data=FILE, or from Python the scales"),
        (LayerwiseRescale(scales={"no.weight": 1.0}), "CifarResNet has no parameter 'no.weight' to scale"),
        (LayerwiseRescale(scales={"bn1.running_mean": 2.0}), r"has no parameter 'bn1.running_mean' to scale"),
        (LayerwiseRescale(scales={"fc.bias": float("nan")}), r"the scale nan of 'fc.bias' is not valid"),
    ],
)
def test_scales_that_are_none(item: LayerwiseRescale, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        item.run(ticket(cifar_resnet(8, width=4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer is sgd or adam, not 'rmsprop'"),
        ({"steps": 0}, "steps=0"),
        ({"eta": 0}, "eta=0: it is above 0"),
        ({"minimum": 2}, "minimum=2: scales begin at 1"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        GradInit(**options)
    with pytest.raises(PlanError, match="there is no batch of it"):
        find_scales(ticket(cifar_resnet(8, width=4)), [])
