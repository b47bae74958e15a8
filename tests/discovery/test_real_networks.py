"""Discovery on networks that nobody here described: torchvision's, transformers', the paper's own, and oddities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.emit.module import build_module
from elastic_ir.frontends.trace import weight_table
from elastic_ir.zoo import cifar_resnet, cifar_vgg

# name: blocks of each stage, whether stages have entries, blocks in a unit, depth
TORCHVISION: dict[str, tuple[list[int], bool, int, int]] = {
    "resnet18": ([2, 2, 2, 2], True, 1, 18),
    "resnet34": ([3, 4, 6, 3], True, 1, 34),
    "resnet50": ([3, 4, 6, 3], True, 1, 50),
    "resnet101": ([3, 4, 23, 3], True, 1, 101),
    "resnet152": ([3, 8, 36, 3], True, 1, 152),
    "resnext50_32x4d": ([3, 4, 6, 3], True, 1, 50),
    "wide_resnet50_2": ([3, 4, 6, 3], True, 1, 50),
    "vgg13": ([2, 2, 2, 2, 2], True, 1, 13),
    "vgg13_bn": ([2, 2, 2, 2, 2], True, 1, 13),
    "vgg16": ([2, 2, 3, 3, 3], True, 1, 16),
    "vgg16_bn": ([2, 2, 3, 3, 3], True, 1, 16),
    "vgg19": ([2, 2, 4, 4, 4], True, 1, 19),
    "vgg19_bn": ([2, 2, 4, 4, 4], True, 1, 19),
    "mobilenet_v2": ([1, 2, 3, 4, 3, 3, 1], True, 1, 53),
    "convnext_tiny": ([3, 3, 9, 3], False, 1, 59),
    "vit_b_16": ([12], False, 1, 50),
    "swin_t": ([2, 2, 6, 2], False, 2, 53),
}


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return make()


def names_only(model: nn.Module) -> eir.Graph:
    """The graph of a network's bare state dict: names and shapes, nothing else."""
    table = weight_table(model)
    return graph_of_tensors("bare", {name: w.storage.data for name, w in table.items() if w.persistent})


def outline(graph: eir.Graph) -> list[tuple[str, int, bool]]:
    """Stages as names alone can tell them: name, blocks, whether it has an entry."""
    return [(stage.name, len(stage), stage.entry is not None) for stage in graph.stages]


@pytest.mark.everyday(4)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_by_tracing_exporting_and_names(name: str) -> None:
    """fx and a bare state dict find the published structure."""
    counts, entries, unit, depth = TORCHVISION[name]
    model = on_meta(lambda: torchvision.models.get_model(name, weights=None))
    graph = eir.trace(model, frontend="fx")
    assert [len(stage) for stage in graph.stages] == counts
    assert all((stage.entry is not None) == entries for stage in graph.stages)
    assert all(stage.period == unit for stage in graph.stages)
    assert graph.depth == depth
    bare = names_only(model)
    assert outline(bare) == outline(graph)
    assert bare.structure.depth == depth
    if unit == 1:
        assert [stage.period for stage in bare.stages] == [1] * len(counts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "vgg13_bn", "mobilenet_v2", "convnext_tiny", "vit_b_16", "swin_t"]
)
def test_both_front_ends_agree(name: str) -> None:
    """torch.fx and torch.export give the same structure, down to the blocks and their weight layers."""
    model = on_meta(lambda: torchvision.models.get_model(name, weights=None))
    left, right = eir.trace(model, frontend="fx"), eir.trace(model, frontend="export")
    assert outline(left) == outline(right)
    assert left.depth == right.depth
    for one, other in zip(left.stages, right.stages, strict=True):
        assert [block.path for block in one.all_blocks] == [block.path for block in other.all_blocks]
        assert [block.layers for block in one.all_blocks] == [block.layers for block in other.all_blocks]
        assert (one.period, one.transition, one.shape) == (other.period, other.transition, other.shape)
    assert (left.structure.stem, left.structure.head) == (right.structure.stem, right.structure.head)


@pytest.mark.everyday(3)
@pytest.mark.parametrize("depth", [14, 20, 32, 44, 56, 110])
@pytest.mark.parametrize("names", ["torchvision", "open_lth"])
def test_cifar_resnets(depth: int, names: Literal["torchvision", "open_lth"]) -> None:
    """Three stages of (depth - 2) / 6 blocks of two convolutions, under either naming."""
    model = on_meta(lambda: cifar_resnet(depth, names=names))
    graph = eir.trace(model)
    blocks = (depth - 2) // 6
    assert [len(stage) for stage in graph.stages] == [blocks] * 3
    assert all(stage.entry is not None for stage in graph.stages)
    assert {block.layers for stage in graph.stages for block in stage.all_blocks} == {2}
    assert graph.depth == depth
    assert outline(names_only(model)) == outline(graph)
    assert names_only(model).depth == depth


@pytest.mark.parametrize(("depth", "counts"), [(13, [2] * 5), (16, [2, 2, 3, 3, 3]), (19, [2, 2, 4, 4, 4])])
@pytest.mark.parametrize("names", ["torchvision", "open_lth"])
def test_cifar_vggs(depth: int, counts: list[int], names: Literal["torchvision", "open_lth"]) -> None:
    """The paper's VGGs; with one linear layer they are two layers less deep than their names say."""
    model = on_meta(lambda: cifar_vgg(depth, names=names))
    graph = eir.trace(model)
    assert [len(stage) for stage in graph.stages] == counts
    assert graph.depth == depth - 2
    assert outline(names_only(model)) == outline(graph)


def transformers_models() -> dict[str, Callable[[], nn.Module]]:
    """Small random members of transformers' families."""
    import transformers as t

    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 50,
    }
    return {
        "bert": lambda: t.BertModel(t.BertConfig(num_hidden_layers=3, **small)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=3, **small)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                d_model=32, d_ff=64, num_layers=3, num_decoder_layers=4, num_heads=4, d_kv=8, vocab_size=50
            )
        ),
    }


TRANSFORMERS = {
    "bert": ([("encoder.layer", 3, False)], 13),
    "llama": ([("model.layers", 3, False)], 13),
    "gpt2": ([("transformer.h", 3, False)], 13),
    "t5": ([("encoder.block", 3, True), ("decoder.block", 4, True)], 35),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.everyday(1)
def test_transformers(name: str) -> None:
    """BERT, Llama and others through torch.export on the meta device; T5's first blocks are pinned."""
    expected, depth = TRANSFORMERS[name]
    model = on_meta(transformers_models()[name])
    graph = eir.trace(model)
    assert graph.info.frontend == "export"
    assert outline(graph) == expected
    assert graph.depth == depth
    assert outline(names_only(model)) == expected


def test_names_that_leave_the_depth_open_say_so() -> None:
    """Query, key and value stand side by side: names do not tell which follows which."""
    bare = names_only(on_meta(transformers_models()["bert"]))
    assert bare.structure.depth is None
    with pytest.raises(eir.StructureError, match="--to-stages or --to-units"):
        _ = bare.depth
    with pytest.raises(eir.PlanError, match="--to-units"):
        eir.stretch(bare, to_depth=20)


def test_names_do_not_show_swin_s_pairs() -> None:
    """A unit of two blocks shows in no weight; it is asked for, and then used."""
    bare = names_only(on_meta(lambda: torchvision.models.swin_t(weights=None)))
    assert [stage.period for stage in bare.stages] == [None] * 4
    with pytest.raises(eir.StructureError, match="--unit N"):
        eir.stretch(bare, to_stages=(2, 2, 18, 2))
    deeper = eir.stretch(bare.with_unit(2), to_stages=(2, 2, 18, 2))
    assert [len(stage) for stage in deeper.stages] == [2, 2, 18, 2]


class Towers(nn.Module):
    """Two stacks side by side, each of an even number of layers, and none of them a stage of the other."""

    def __init__(self) -> None:
        super().__init__()
        for name, width in (("text", 8), ("vision", 12)):
            blocks = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(4)]
            self.add_module(name, nn.ModuleDict({"layers": nn.ModuleList(blocks)}))


def test_only_lists_in_a_row_may_alternate() -> None:
    """What is numbered in a row may hold pairs like Swin's; two towers of four layers each do not."""
    bare = names_only(on_meta(Towers))
    assert [(stage.name, stage.period) for stage in bare.stages] == [("text.layers", 1), ("vision.layers", 1)]
    deeper = eir.stretch(bare, to_stages={"vision.layers": 5})
    assert [len(stage) for stage in deeper.stages] == [4, 5]


def test_transitions_are_named() -> None:
    """Layers of their own that downsample stand before the stage that they open."""
    graph = eir.trace(on_meta(lambda: torchvision.models.convnext_tiny(weights=None)))
    assert [stage.transition for stage in graph.stages] == [None, "features.2", "features.4", "features.6"]
    vgg = eir.trace(on_meta(lambda: torchvision.models.vgg16(weights=None)))
    assert [stage.transition for stage in vgg.stages] == [None] * 5


def test_unit_weight_layers_and_shapes() -> None:
    """A bottleneck has three layers; the stage knows its activation's shape."""
    example = torch.empty(1, 3, 64, 64, device="meta")
    graph = eir.trace(on_meta(lambda: torchvision.models.resnet50(weights=None)), (example,))
    assert [unit.layers for unit in graph.stages[0].units] == [3, 3]
    shapes = [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    assert [stage.shape for stage in graph.stages] == shapes


class Gated(nn.Module):
    """A residual block with squeeze-excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc1 = nn.Conv2d(width, 4, 1)
        self.fc2 = nn.Conv2d(4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(y.mean((2, 3), keepdim=True)))))
        return torch.relu(x + y * gate)


def test_gates_do_not_count() -> None:
    """The two layers of squeeze-excitation lie on no path that counts, traced or by names."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Gated(8), Gated(8), Gated(8)), nn.Flatten()
    )
    graph = eir.trace(model, (torch.randn(1, 3, 8, 8),))
    assert graph.depth == 4
    assert names_only(model).depth == 4


class Masked(nn.Module):
    """Blocks that all read a mask made before the run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(keep)
        for layer in self.inner:
            x = layer(x)
        return x * gate


def test_values_made_before_a_run_do_not_break_it() -> None:
    """A value that is live across the run is no reason against it."""
    graph = eir.trace(Masked(), (torch.randn(2, 8), torch.randn(2, 8)))
    assert outline(graph) == [("inner", 3, False)]


def test_nothing_that_repeats_is_said_in_one_sentence() -> None:
    """One clear sentence, traced or by names."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    for graph in (eir.trace(model, (torch.randn(1, 8),)), names_only(model)):
        with pytest.raises(eir.StructureError) as caught:
            _ = graph.stages
        message = str(caught.value)
        assert "repeats" in message
        assert "\n" not in message
        assert message.count(". ") == 0


def test_dense_connections_are_no_chain() -> None:
    """DenseNet's layers all read all before them: nothing can be cloned, and that is said."""
    model = on_meta(lambda: torchvision.models.densenet121(weights=None))
    with pytest.raises(eir.StructureError, match="nothing in DenseNet repeats"):
        _ = eir.trace(model).stages


def test_meta_models_are_read_without_memory() -> None:
    """A network of 80 GB is traced and stretched; a module to count on allocates nothing, and none is handed out."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(32768, 32768), nn.ReLU()) for _ in range(20)))
    deeper = eir.stretch(eir.trace(model), to_units=24)
    with pytest.raises(eir.EmitError, match="was read on the meta device and has no values"):
        deeper.to_module()
    made = build_module(deeper)
    assert len(made) == 24  # type: ignore[arg-type]  # a Sequential has a length
    assert all(parameter.is_meta for parameter in made.parameters())


def test_without_a_guess_a_shape_is_asked_for() -> None:
    """Where no guess runs, the message asks for the input's shape."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = self.layers(x.reshape(3, 5, 7)).sum()
            return total

    with pytest.raises(eir.TraceError, match="--input-shape"):
        eir.trace(Odd())
    assert outline(eir.trace(Odd(), input_shape=[(3, 35)])) == [("layers", 3, False)]


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2", "convnext_tiny", "swin_t"])
@pytest.mark.everyday(1)
def test_a_file_sorted_by_name_tells_the_same(name: str, tmp_path: Path) -> None:
    """The safetensors library sorts what it writes; numbers and channels still tell the order."""
    from safetensors.torch import save_file

    model = torchvision.models.get_model(name, weights=None)
    save_file(model.state_dict(), tmp_path / "sorted.safetensors")
    found, traced = eir.load(tmp_path / "sorted.safetensors"), eir.trace(model)
    assert outline(found) == outline(traced)
    assert found.depth == traced.depth
    assert set(found.structure.stem) == set(traced.structure.stem)
    assert set(found.structure.head) == set(traced.structure.head)
    assert [s.transition is None for s in found.stages] == [s.transition is None for s in traced.stages]


class Standardised(nn.Conv2d):
    """A convolution whose weight is normalised at every forward (NFNet's)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


def test_standardised_weights_count_as_layers() -> None:
    """What is computed from a weight alone counts where it is used, not where it is made."""
    model = nn.Sequential(*(Standardised(4, 4, 3) for _ in range(5)))
    assert eir.trace(model, (torch.randn(1, 4, 8, 8),)).depth == 5


class Layer(nn.Module):
    def __init__(self, norm: bool = True, last: bool = False) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        if last:
            self.final_norm = nn.LayerNorm(8)


def test_ends_of_another_kind_by_names() -> None:
    """ModernBERT's first layer has a norm less; another's last one has a norm more, for the result of all."""
    model = nn.Module()
    model.embed_proj = nn.Linear(8, 8)
    model.layers = nn.Sequential(Layer(norm=False), Layer(), Layer(), Layer(), Layer(last=True))
    (stage,) = names_only(model).stages
    assert (stage.entry is not None, len(stage.blocks), stage.exit is not None) == (True, 3, True)


def test_attention_of_another_kind_by_names() -> None:
    """One layer in four attends to all, with other names and fewer channels out of its last tensor by name."""

    def layer(full: bool) -> nn.Module:
        made = nn.Module()
        made.input_norm, made.post_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        made.mlp = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        setattr(
            made,
            "self_attn" if full else "linear_attn",
            nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 4)}),
        )
        return made

    model = nn.Module()
    model.layers = nn.ModuleList(layer(full=number == 3) for number in range(4))
    (stage,) = names_only(model).stages
    assert len(stage.blocks) == 4 and stage.entry is None
