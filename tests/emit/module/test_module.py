"""Emission to modules: the class is kept where it can be, constants follow the depth, and every unit runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.emit.module.check import check_runs
from elastic_ir.plans.plan import Order
from elastic_ir.zoo import cifar_resnet


class Named(nn.Module):
    """All children numbered, and a forward that names them one by one."""

    def __init__(self) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"b{number}", nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("b1", "b2", "b3"):
            x = self.get_submodule(name)(x)
        return x


class Iterating(Named):
    """The same children, iterated (RegNet's stages)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


class Series(nn.Module):
    """A series of blocks among other children, with functional activations in between."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        for number in range(1, count + 1):
            self.add_module(f"block{number}", nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number in range(1, self.count + 1):
            x = torch.relu(self.get_submodule(f"block{number}")(x))
        out: torch.Tensor = self.head(x)
        return out


class Listed(nn.Module):
    """A ModuleList whose owner adds a residual sum around each member."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner:
            x = (x + layer(x)).relu()
        return x


@pytest.mark.parametrize(("kind", "kept"), [(Named, False), (Iterating, True)])
def test_the_class_is_kept_only_where_it_runs_new_children(kind: type[Named], kept: bool) -> None:
    """A class that names its children would ignore new ones; it becomes a GraphModule that runs them."""
    example = torch.randn(2, 8)
    graph = eir.trace(kind(), (example,))
    deeper = eir.stretch(graph, to_units=5)
    module = deeper.to_module()
    assert (type(module) is kind) == kept
    assert isinstance(module, fx.GraphModule) != kept
    assert check_runs(module, deeper) == 5
    expected = example
    for number in (1, 2, 3, 1, 2):
        expected = graph.to_module().get_submodule(f"b{number}")(expected)
    assert torch.equal(module(example), expected)


def test_a_series_of_named_blocks_becomes_a_graph_module() -> None:
    """Names go on where the series ends, and the native deeper class computes the same."""
    example = torch.randn(2, 4)
    deeper = eir.stretch(eir.trace(Series(), (example,)), to_units=5)
    native = Series(5)
    native.load_state_dict(deeper.state_dict(), strict=True)
    assert list(deeper.state_dict()) == list(native.state_dict())
    assert torch.equal(deeper.to_module()(example), native(example))
    assert deeper.depth == 7


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_what_the_owner_does_around_each_member_goes_with_it(frontend: Frontend) -> None:
    """A residual sum outside the blocks belongs to the unit."""
    example = torch.randn(2, 4)
    graph = eir.trace(Listed(), (example,), frontend=frontend)
    assert [(stage.name, len(stage)) for stage in graph.stages] == [("inner", 3)]
    deeper = eir.stretch(graph, to_units=5)
    native = Listed(5)
    native.load_state_dict(deeper.state_dict(), strict=True)
    assert type(deeper.to_module()) is Listed
    assert torch.equal(deeper.to_module()(example), native(example))


PAIRS: dict[str, tuple[str, str, Order]] = {
    "resnet18": ("resnet34", "3,4,6,3", "append"),
    "vgg13_bn": ("vgg19_bn", "2,2,4,4,4", "interpolate"),
    "convnext_tiny": ("convnext_small", "3,3,27,3", "interpolate"),
    "swin_t": ("swin_s", "2,2,18,2", "append"),
}


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in PAIRS if name != "resnet18")],
)
def test_torchvision_outputs_equal_the_native_network_s(name: str) -> None:
    """Strict load into the published deeper network, equal outputs bit for bit, and back again."""
    other, counts, order = PAIRS[name]
    model = torchvision.models.get_model(name, weights=None)
    graph = eir.trace(model)
    deeper = eir.stretch(graph, to_stages=counts, order=order)
    native = torchvision.models.get_model(other, weights=None)
    assert list(deeper.state_dict()) == list(native.state_dict())
    native.load_state_dict(deeper.state_dict(), strict=True)
    module = deeper.to_module()
    assert type(module) is type(model)
    example = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module.eval()(example), native.eval()(example))
    back = eir.squeeze(deeper, like=graph, drop="even" if order == "interpolate" else "tail")
    assert str(back) == str(graph)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in back.state_dict().items())


def test_gradients_flow_to_every_clone_separately() -> None:
    """Clones are parameters of their own: each gets its own gradient."""
    deeper = eir.stretch(eir.trace(cifar_resnet(14, width=4)), to_depth=26)
    module = deeper.to_module()
    module(torch.randn(4, 3, 32, 32)).sum().backward()
    lineage = deeper.lineage()
    twins = [p for n, p in module.named_parameters() if lineage[n] == "layer1.1.conv1.weight"]
    assert len(twins) == 3
    gradients = [twin.grad for twin in twins if twin.grad is not None]
    assert len(gradients) == 3
    assert len({gradient.data_ptr() for gradient in gradients}) == 3
    assert not torch.equal(gradients[0], gradients[1])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def small_transformers() -> dict[str, Callable[[], nn.Module]]:
    """Small random transformers models."""
    import transformers as t

    return {
        "bert": lambda: t.BertModel(
            t.BertConfig(
                hidden_size=32,
                intermediate_size=64,
                num_attention_heads=4,
                vocab_size=50,
                num_hidden_layers=3,
            )
        ),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_attention_heads=4,
                vocab_size=50,
                num_hidden_layers=3,
                tie_word_embeddings=True,
            )
        ),
        "qwen3": lambda: t.Qwen3ForCausalLM(
            t.Qwen3Config(
                hidden_size=32,
                intermediate_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=50,
                num_hidden_layers=3,
            )
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama", "qwen3"])
def test_transformers_configurations_follow(name: str) -> None:
    """The count and per-layer lists are brought up to date, the source's stay, and every layer runs."""
    source = small_transformers()[name]()
    deeper = eir.stretch(eir.trace(source), to_units=5, order="interpolate")
    module = deeper.to_module()
    config: Any = module.config
    assert config.num_hidden_layers == 5
    assert source.config.num_hidden_layers == 3  # type: ignore[union-attr]
    if hasattr(config, "layer_types"):
        assert len(config.layer_types) == 5
    assert check_runs(module, deeper) == 5
    grown: Any = copy.deepcopy(source.config)
    grown.num_hidden_layers = 5
    if hasattr(grown, "layer_types"):
        grown.layer_types = ["full_attention"] * 5
    native = type(source)(grown)
    native.load_state_dict(deeper.state_dict(), strict=True)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(native.eval()(tokens)[0], module.eval()(tokens)[0])


@pytest.mark.slow
def test_a_stretched_llama_generates_with_its_cache() -> None:
    """Layer indices are renumbered: generation with the key-value cache equals generation without."""
    module = eir.stretch(eir.trace(small_transformers()["llama"]()), to_units=5).to_module().eval()
    layers = module.get_submodule("model.layers")
    assert [layer.self_attn.layer_idx for layer in layers.children()] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert module.get_parameter("lm_head.weight") is module.get_parameter("model.embed_tokens.weight")
    tokens = torch.arange(6)[None]
    options = {"max_new_tokens": 8, "do_sample": False}
    with_cache = module.generate(tokens, **options)  # type: ignore[operator]
    without = module.generate(tokens, use_cache=False, **options)  # type: ignore[operator]
    assert torch.equal(with_cache, without)


@pytest.mark.slow
def test_encoder_and_decoder_have_counts_of_their_own() -> None:
    """Stretching T5's encoder alone leaves the decoder's count as it was."""
    import transformers as t

    settings = t.T5Config(
        d_model=32, d_ff=64, num_layers=3, num_decoder_layers=3, num_heads=4, d_kv=8, vocab_size=50
    )
    deeper = eir.stretch(eir.trace(t.T5ForConditionalGeneration(settings)), to_stages={"encoder.block": 5})
    module = deeper.to_module()
    assert (module.config.num_layers, module.config.num_decoder_layers) == (5, 3)  # type: ignore[union-attr]
    assert check_runs(module, deeper) == 8


class Fixed(nn.Module):
    """A forward that runs a fixed number of its layers, whatever there are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner[:3]:
            x = layer(x)
        return x


def test_blocks_that_would_never_run_are_seen() -> None:
    """A forward that returns proves nothing: the check sees which blocks executed."""
    deeper = eir.stretch(eir.trace(Fixed(), (torch.randn(1, 4),)), to_units=5)
    with pytest.raises(eir.EmitError, match=r"2 of 5 blocks would never run, 'inner\.3' first"):
        check_runs(deeper.to_module(check=False), deeper)
    assert check_runs(deeper.to_module(), deeper) == 5  # a GraphModule runs them


def test_modes_devices_and_flags_stay() -> None:
    """Training mode, frozen parameters and dtype are the source's; the source is untouched."""
    model = cifar_resnet(14, width=4).double().eval()
    model.layer1[1].conv1.weight.requires_grad_(False)  # type: ignore[union-attr, index]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deeper = eir.stretch(eir.trace(model), to_depth=20)
    module = deeper.to_module()
    assert not module.training
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert frozen == {"layer1.1.conv1.weight", "layer1.2.conv1.weight"}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Dropped(nn.Module):
    """A block with a functional dropout, a norm and a buffer that state dicts leave out."""

    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.bn = nn.BatchNorm1d(8)
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + nn.functional.dropout(self.bn(self.fc(x)) + self.shift, 0.5, self.training)
        return out


class DroppedSeries(nn.Module):
    """Three of them, named one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = Dropped(), Dropped(), Dropped()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block3(self.block2(self.block1(x)))
        return out


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_module_has_modes_and_transient_buffers(training: bool) -> None:
    """Dropout follows the mode, whichever the trace saw; the source's mode is taken over; no buffer becomes a key."""
    model = DroppedSeries().train(training)
    example = torch.randn(16, 8)
    deeper = eir.stretch(eir.trace(model, (example,)), to_units=5)
    module = deeper.to_module()
    assert isinstance(module, fx.GraphModule)
    assert module.training == module.get_submodule("block4.bn").training == training
    assert list(module.state_dict()) == list(deeper.state_dict())
    assert not any("shift" in name for name in module.state_dict())
    module.eval()
    assert torch.equal(module(example), module(example))
    module.train()
    assert not torch.equal(module(example), module(example))


@pytest.mark.slow
def test_counts_that_only_equal_the_depth_by_chance_stay() -> None:
    """Three channels, eight buckets, twelve classes are no counts of layers."""
    import transformers as t

    settings = t.ViTConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=3)
    module: Any = eir.stretch(eir.trace(t.ViTModel(settings)), to_units=5).to_module()
    assert (module.config.num_hidden_layers, module.config.num_channels) == (5, 3)


@pytest.mark.slow
def test_the_decoder_s_own_configuration_follows() -> None:
    """T5 keeps a configuration in each stack; the decoder's counts its own layers, and generation runs."""
    import transformers as t

    settings = t.T5Config(
        d_model=32,
        d_ff=64,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        d_kv=8,
        vocab_size=50,
    )
    deeper = eir.stretch(eir.trace(t.T5ForConditionalGeneration(settings)), to_stages={"decoder.block": 5})
    module: Any = deeper.to_module().eval()
    assert (module.config.num_layers, module.config.num_decoder_layers) == (3, 5)
    assert module.decoder.config.num_layers == 5
    grown = copy.deepcopy(settings)
    grown.num_decoder_layers = 5
    native: Any = t.T5ForConditionalGeneration(grown)
    native.eval()
    native.load_state_dict(deeper.state_dict(), strict=True)
    tokens = torch.arange(6)[None]
    # without the cache: transformers sizes it by the encoder's count, so a deeper decoder overruns it natively too
    options = {"max_new_tokens": 5, "do_sample": False, "use_cache": False, "decoder_start_token_id": 0}
    assert torch.equal(module.generate(tokens, **options), native.generate(tokens, **options))


class Keeping(nn.Module):
    """Keeps what it computed, to be looked at, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.maps: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.maps = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            self.maps.append(x)
        self.last = x
        return x


def test_a_network_that_keeps_results_of_a_run() -> None:
    model, x = Keeping(), torch.randn(2, 4)
    model(x).sum().backward()
    made = eir.stretch(eir.trace(model, (x,)), to_units=4).to_module()
    assert isinstance(made, Keeping)
    assert torch.allclose(made(x), torch.relu(made.layers[0](model(x))))
