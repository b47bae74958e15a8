"""What names and shapes tell of a network, against what its trace tells, over the zoo.

They agree where both have the same stages: the same names, for each the same blocks (by path) in the same order, and an
entry or none. How many blocks make a unit is the same, or names leave it open (None). In a file sorted by name, as the
safetensors library writes them, the stages may come in another order, since no name says which stack runs first.

Names do not show all of it. Where they cannot, the tables below have what they show in its place, each with its reason:
a change of discovery that changes one of these outcomes is to be looked at, whichever way it goes.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import pytest
import timm
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.plans.keep_beside import refuse_left_behind
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.networks.transformers_families import FAMILIES

#: A stage as both show it: its name, its blocks, whether it has an entry.
Outline: TypeAlias = list[tuple[str, int, bool]]

ZOO = ["resnet20", "resnet56", "vgg13", "vgg16", "vgg19"]
TORCHVISION = """
alexnet convnext_tiny efficientnet_b0 efficientnet_v2_s mnasnet0_5 mobilenet_v2 mobilenet_v3_small resnet18 resnet50
resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 swin_t vgg11 vgg13 vgg16_bn vit_b_16 wide_resnet50_2
densenet121 googlenet
"""
TIMM = """
convnext_tiny darknet17 ecaresnet26t hiera_tiny_224 mambaout_femto poolformer_s12 resnet26 seresnet18 skresnet18
starnet_s2 swin_tiny_patch4_window7_224 twins_pcpvt_small vgg13
"""
TIMM_SLOW = """
cait_xxs24_224 coat_lite_mini coatnet_0_224 convnextv2_tiny darknet53 davit_tiny ecaresnet50d efficientvit_l1
ese_vovnet39b fastvit_sa12 focalnet_tiny_srf gcvit_xxtiny gernet_m gmixer_12_224 inception_next_tiny mvitv2_tiny
nest_tiny nextvit_small nf_resnet26 nfnet_f1 pvt_v2_b1 repvit_m1_1 res2net50_26w_4s resmlp_12_224 resnest26d resnetv2_18
sequencer2d_s swinv2_cr_tiny_ns_224 swinv2_tiny_window16_256 vgg13_bn volo_d2_224 xcit_tiny_12_p16_224
"""
#: Of transformers' families those of the everyday suite.
DAILY = ("bert", "gpt2", "llama", "mixtral", "t5", "clip", "swin", "vit")

#: What names show in the order of the state dict, where that is another thing than the trace's: reason, outline.
KNOWN: dict[str, tuple[str, Outline | None]] = {
    "clip": (
        "towers side by side are named in the order in which they stand, not in that in which they run",
        [("text_model.encoder.layers", 3, False), ("vision_model.encoder.layers", 3, False)],
    ),
    "skresnet18": (
        "each path reads half of the channels, so that no block seems to give out what it takes in; the paths, two "
        "alike in a block, are what repeats",
        [("layer1", 2, False), *((f"layer{i}.{j}.conv1.paths", 2, False) for i in (2, 3, 4) for j in (0, 1))],
    ),
    "twins_pcpvt_small": (
        "a position encoding of its own stands behind the first block of each stage, which no number tells",
        [(f"blocks.{i}", n, False) for i, n in enumerate((3, 4, 6, 3))],
    ),
    "gcvit_xxtiny": (
        "what makes the global queries stands beside the blocks and not in their row, which only data flow shows",
        [
            (f"stages.{i}.{name}", count, False)
            for i, counts in enumerate(((3, 2), (2, 2), (1, 6), (1, 2)))
            for name, count in zip(("global_block.blocks", "blocks"), counts, strict=True)
        ],
    ),
    "ese_vovnet39b": (
        "convolutions side by side in a block are concatenated and seem to be a row; the blocks around them differ",
        [
            ("stem:1", 2, True), ("stem:2", 1, True),
            *((f"stages.{i}.blocks.{j}.conv_mid", 5, True) for i, n in enumerate((1, 1, 2, 2)) for j in range(n)),
        ],
    ),
    "starnet_s2": (
        "the first stage is one block behind a strided convolution of equal width: strides stand in no shape",
        [("stages.1", 2, False), ("stages.2", 6, False), ("stages.3", 2, False)],
    ),
    "efficientvit_l1": (
        "the stem is a residual branch of two like convolutions: a shortcut around them stands in no name",
        [
            ("stem.res0.main", 2, False), ("stages.0.blocks", 2, True), ("stages.1.blocks", 2, True),
            ("stages.2.blocks", 7, True), ("stages.3.blocks", 6, False),
        ],
    ),
    "squeezenet1_0": ("Fire's expansions are concatenated, so that its channels out stand in no shape", None),
    "squeezenet1_1": ("Fire's expansions are concatenated, so that its channels out stand in no shape", None),
}  # fmt: skip

_WITHIN = "sorted by name, a block's layers stand in no order, so that the channels in and out are not told"

#: The same of a file sorted by name, where that is another thing again.
KNOWN_SORTED: dict[str, tuple[str, Outline | None]] = {
    "clip": ("", [("text_model.encoder.layers", 3, False), ("vision_model.encoder.layers", 3, False)]),
    "skresnet18": (
        _WITHIN, [("layer1", 2, False), ("layer2", 2, True), ("layer3", 2, True), ("layer4", 2, True)]
    ),
    "mvitv2_tiny": (_WITHIN, [("stages.0.blocks", 1, True), ("stages.2.blocks", 5, True)]),
    "coatnet_0_224": (
        _WITHIN, [("stages.1.blocks", 3, True), ("stages.2.blocks", 5, True), ("stages.3.blocks", 2, True)]
    ),
    "ese_vovnet39b": (
        _WITHIN,
        [
            *((f"stages.{i}.blocks.{j}.conv_mid", 5, True) for i, n in enumerate((1, 1, 2, 2)) for j in range(n)),
            ("stem", 2, True),
        ],
    ),
}  # fmt: skip


def outline(graph: eir.Graph) -> Outline | None:
    """None where nothing repeats."""
    try:
        return [(stage.name, len(stage), stage.entry is not None) for stage in graph.stages]
    except eir.StructureError:
        return None


def by_names(model: nn.Module, *, by_name: bool) -> eir.Graph:
    """What is left of a network in a file: names, shapes and dtypes, in its own order or sorted."""
    state = model.state_dict()
    names = sorted(state) if by_name else list(state)
    shapes = {n: ShapeOnly(tuple(state[n].shape), str(state[n].dtype).removeprefix("torch.")) for n in names}
    return graph_of_tensors("bare", dict(shapes))


def changes_alone(graph: eir.Graph) -> None:
    """Every stage may be changed by itself: none of these networks has anything in step with one, or indexed by it."""
    for stage in graph.stages:
        plan = [list(range(len(other))) for other in graph.stages]
        if stage.blocks:
            plan[graph.stages.index(stage)].append(len(stage) - 1)
            refuse_left_behind(graph, plan, ())


def agree(name: str, model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = eir.trace(model)
    found = outline(traced)
    for by_name in (False, True):
        bare = by_names(model, by_name=by_name)
        told = outline(bare)
        if told is not None:
            changes_alone(bare)
        known = (KNOWN_SORTED.get(name) if by_name else None) or KNOWN.get(name)
        if known is not None:
            assert _order(told, by_name) == _order(known[1], by_name), known[0]
            if not by_name:
                assert told != found, f"{name} agrees now: take it from the table"
            continue
        assert _order(told, by_name) == _order(found, by_name)
        if found is None:
            continue
        stages = {stage.name: stage for stage in traced.stages}
        for stage in bare.stages:
            twin = stages[stage.name]
            assert [block.path for block in stage.all_blocks] == [block.path for block in twin.all_blocks]
            assert stage.period in (None, twin.period) or twin.alike  # masks show in no name


def _order(found: Outline | None, by_name: bool) -> Outline | None:
    return sorted(found) if found is not None and by_name else found


def zoo(name: str, names: Any) -> nn.Module:
    depth = int("".join(filter(str.isdigit, name)))
    return (cifar_resnet if name.startswith("resnet") else cifar_vgg)(depth, names=names)


@pytest.mark.parametrize("names", ["torchvision", "open_lth"])
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, names: str) -> None:
    with torch.device("meta"):
        model = zoo(name, names)
    agree(name, model)


@pytest.mark.everyday(4)
@pytest.mark.parametrize("name", TORCHVISION.split())
def test_torchvision(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    agree(name, model)


@pytest.mark.parametrize(
    "name", [*TIMM.split(), *(pytest.param(name, marks=pytest.mark.slow) for name in TIMM_SLOW.split())]
)
def test_timm(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    agree(name, model)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DAILY else pytest.mark.slow) for name in FAMILIES]
)
def test_transformers(name: str) -> None:
    """All families, packed experts and mixed kinds of layers included."""
    with torch.device("meta"):
        model = FAMILIES[name].make()
    agree(name, model.eval())


def test_the_tables_speak_of_networks_that_are_tested() -> None:
    tested = {*TORCHVISION.split(), *TIMM.split(), *TIMM_SLOW.split(), *FAMILIES}
    assert {*KNOWN, *KNOWN_SORTED} <= tested
