"""Growth: copies that start empty or share a step, stacks; what stays the same, and what is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.branches import branches_of
from elastic_ir.errors import PlanError
from elastic_ir.passes import DepthUpscale, IdentityBlocks, Pipeline, RescaleResidual, Stack, Stretch
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet20": lambda: cifar_resnet(20),
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "vit": lambda: torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128
    ),
    "swin_t": lambda: torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8], window_size=[7, 7]
    ),
    "convnext_tiny": lambda: timm.create_model("convnext_atto"),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "poolformer_s12": lambda: timm.create_model("poolformer_s12"),
    "seresnet18": lambda: timm.create_model("seresnet18"),
    "mixer_s32": lambda: timm.create_model("mixer_s32_224"),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=99)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
}


def traced(name: str) -> eir.Graph:
    """A network none of whose constants is trivial: a layer scale starts at 1e-6, a gate at 0."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for role, buffer in model.named_buffers():
            if "running" in role:
                buffer.mul_(1 + 0.1 * torch.rand_like(buffer))
    return eir.trace(model)


def result(graph: eir.Graph) -> torch.Tensor:
    module = graph.to_module().eval()
    inputs = graph.origin.inputs
    assert inputs is not None
    with torch.no_grad():
        found = module(*inputs.args, **inputs.kwargs)
    return found if isinstance(found, torch.Tensor) else found.logits


def one_more(graph: eir.Graph) -> dict[str, int]:
    return {stage.name: len(stage) + (stage.period or 1) for stage in graph.stages if stage.blocks}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_identity_blocks_keep_the_function_and_learn(name: str) -> None:
    graph = traced(name)
    deeper = IdentityBlocks(to_stages=one_more(graph)).run(graph)
    before, after = result(graph), result(deeper)
    assert torch.equal(before, after) or (before - after).abs().max() <= 1e-6 * before.abs().max()
    assert deeper.depth > graph.depth
    module = deeper.to_module().train()
    inputs = graph.origin.inputs
    assert inputs is not None
    found = module(*inputs.args, **inputs.kwargs)
    (found if isinstance(found, torch.Tensor) else found.logits).square().mean().backward()
    made = [n for n, p in module.named_parameters() if not p.any() and p.grad is not None and p.grad.any()]
    assert made  # what starts at zero is moved by the first step


@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenet_v2", "swin_t", "llama"])
@pytest.mark.slow
def test_rescaled_copies_stay_closer(name: str) -> None:
    graph = traced(name)
    source = result(graph)
    plain = Stretch(to_stages=one_more(graph), order="interpolate").run(graph)
    rescaled = RescaleResidual().run(plain)
    assert (result(rescaled) - source).norm() < 0.7 * (result(plain) - source).norm()


def test_each_of_k_copies_takes_a_kth_of_the_step() -> None:
    graph = traced("cifar_resnet20")
    deeper = Pipeline.parse("stretch{to-stages=5,4,3 order=append},rescale-residual").run(graph)
    source, made = graph.state_dict(), deeper.state_dict()
    done = deeper.history.reports["rescale-residual"]
    assert done == {
        "layer1.1": 0.5, "layer1.2": 0.5, "layer1.3": 0.5, "layer1.4": 0.5, "layer2.1": 0.5, "layer2.3": 0.5,
    }  # fmt: skip
    for name, origin in deeper.lineage().items():
        scaled = name.startswith(tuple(f"{path}.bn2." for path in done)) and name.endswith(("weight", "bias"))
        assert torch.equal(made[name], source[origin] * (0.5 if scaled else 1)), name
    thirds = Pipeline.parse("stretch{plan='0,1,1,1,2|0-2|0-2'},rescale-residual").run(graph)
    assert set(thirds.history.reports["rescale-residual"].values()) == {1 / 3}
    fixed = Pipeline.parse("stretch{to-stages=5,3,3},rescale-residual{factor=0.25}").run(graph)
    assert set(fixed.history.reports["rescale-residual"].values()) == {0.25}


@pytest.mark.slow
def test_masks_are_carried() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20)
    graph = eir.trace(model, masks=magnitude_masks(model, 0.8))
    for text in (
        "stretch{to-depth=32},rescale-residual",
        "identity-blocks{to-depth=32}",
        "stack",
        "depth-upscale{drop=1}",
    ):
        deeper = Pipeline.parse(text).run(graph)
        for name, mask in deeper.masks().items():
            assert torch.equal(mask, graph.masks()[deeper.lineage()[name]])
            assert not deeper.state_dict()[name][mask == 0].any()


@pytest.mark.slow
def test_stacks() -> None:
    graph = traced("gpt2")
    assert Stack(times=3).run(graph).resequenced.plan == ((0, 1, 2, 3) * 3,)
    assert DepthUpscale().run(graph).resequenced.plan == ((0, 1, 2, 1, 2, 3),)
    assert DepthUpscale(drop=0).run(graph).resequenced.plan == ((0, 1, 2, 3, 0, 1, 2, 3),)
    swin = DepthUpscale().run(traced("swin_t")).resequenced.plan  # in whole pairs; a quarter of three is none
    assert swin == ((0, 1) * 2, (0, 1) * 2, (0, 1, 2, 3, 4, 5) * 2, (0, 1) * 2)
    resnet = Stack().run(traced("cifar_resnet20")).resequenced.plan
    assert resnet == ((0, 1, 2, 1, 2),) * 3


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("make", "item", "message"),
    [
        (
            lambda: cifar_resnet(20),
            RescaleResidual(),
            "no block occurs twice, so there is no step to share; run stretch",
        ),
        (lambda: cifar_resnet(20), RescaleResidual(factor="half"), "factor is euler or a number, not 'half'"),  # type: ignore[arg-type]
        (lambda: cifar_resnet(20), Stack(times=1), "times=1 stacks nothing; give 2 or more"),
        (
            lambda: cifar_resnet(20),
            DepthUpscale(drop=2),
            "drop=2 leaves nothing of stage 'layer1', which has 2 free units",
        ),
        (
            torchvision.models.vgg11,
            IdentityBlocks(to_stages={"features:3": 3}),
            "a copy of features.8 cannot start as the identity: its output comes from nn.ReLU, not from a sum",
        ),
        (
            lambda: timm.create_model("nf_resnet26"),
            IdentityBlocks(to_stages={"stages.0": 3}),
            "a copy of stages.0.1 cannot start as the identity: the weight of %",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], nn.Module], item: Any, message: str) -> None:
    graph = eir.trace(make())
    with pytest.raises(PlanError) as caught:
        item.run(graph)
    assert str(caught.value).startswith(message)


def test_a_norm_behind_the_sum_is_no_identity() -> None:
    graph = eir.trace(transformers.BertModel(transformers.BertConfig(**SMALL)))
    with pytest.raises(PlanError) as caught:
        IdentityBlocks(to_units=5).run(graph)
    assert "cannot start as the identity: its output comes from aten.layer_norm.default" in str(caught.value)


def test_branches() -> None:
    graph = traced("cifar_resnet20")
    entry, free = graph.stages[1].all_blocks[:2]
    (branch,), reason = branches_of(free, graph)
    assert reason == "" and branch.weights == ("layer2.1.bn2.weight", "layer2.1.bn2.bias")
    assert branches_of(entry, graph) == ([], "it changes the activation's shape")
