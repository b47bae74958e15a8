"""Which stored tensors are weights of layers, and copies of modules whose weights are computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from elastic_ir.tensors.weights import looks_like_layer, looks_prunable
from elastic_ir.tickets.parametrizations import copied, layer_weights, parametrizations_of
from elastic_ir.tickets.parametrizations import parametrize as parametrize_again


class Pattern(nn.Module):
    kept: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("kept", (torch.arange(shape.numel()) % 2).reshape(shape).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


class Flipped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.flip(0)


class Raising(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        if weight.eq(0).any():
            raise ValueError("no zeros, please")
        return weight


def own(kind: Callable[[torch.Size], nn.Module]) -> Callable[[nn.Module], object]:
    def apply(layer: nn.Module) -> nn.Module:
        return parametrize.register_parametrization(layer, "weight", kind(layer.weight.shape))  # type: ignore[arg-type]

    return apply


def old(kind: str) -> Callable[[nn.Module], object]:
    def apply(layer: nn.Module) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, kind)(layer)

    return apply


FORMS: dict[str, tuple[Callable[[nn.Module], object], dict[str, bool]]] = {
    "plain": (lambda layer: layer, {"weight": True}),
    "weight norm": (parametrizations.weight_norm, {"parametrizations.weight.original1": True}),
    "weight norm by a hook": (old("weight_norm"), {"weight_v": True}),
    "spectral norm": (parametrizations.spectral_norm, {"parametrizations.weight.original": True}),
    "spectral norm by a hook": (old("spectral_norm"), {"weight_orig": True}),
    "orthogonal": (parametrizations.orthogonal, {"parametrizations.weight.original": False}),
    "a pattern": (own(Pattern), {"parametrizations.weight.original": True}),
    "rows turned round": (own(lambda _: Flipped()), {"parametrizations.weight.original": False}),
    "one that raises": (own(lambda _: Raising()), {"parametrizations.weight.original": False}),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_stored_tensor_is_the_layer(form: str) -> None:
    apply, wanted = FORMS[form]
    layer = nn.Linear(6, 4)
    apply(layer)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert {weight.name: weight.prunable for weight in layer_weights(layer)} == wanted
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_tables_and_norms_are_none() -> None:
    table = parametrizations.weight_norm(nn.Embedding(5, 4))
    norm = parametrizations.weight_norm(nn.LayerNorm([4, 4]))
    assert not list(layer_weights(table)) and not list(layer_weights(norm))
    assert not list(layer_weights(table.parametrizations["weight"]))


@pytest.mark.parametrize("form", [form for form in FORMS if "plain" not in form])
def test_copies_are_of_their_own(form: str) -> None:
    layer = nn.Linear(6, 4)
    FORMS[form][0](layer)
    if form != "one that raises":
        layer(torch.randn(2, 6)).sum().backward()  # leaves computed weights with a history behind
    twin = copied(layer, {})
    given = torch.randn(3, 6)
    assert torch.allclose(twin.eval()(given), layer.eval()(given), atol=1e-6)
    if parametrize.is_parametrized(twin):
        parametrize.remove_parametrizations(twin, "weight")
        assert parametrize.is_parametrized(layer) and not parametrize.is_parametrized(twin)
        assert torch.allclose(twin(given), layer(given), atol=1e-6)


@pytest.mark.parametrize("form", [form for form in FORMS if "norm" in form or form == "orthogonal"])
def test_what_torch_computes_is_made_again(form: str) -> None:
    layer, fresh = nn.Linear(6, 4), nn.Linear(6, 4)
    FORMS[form][0](layer)
    recorded = parametrizations_of(layer)["parametrizations"]
    parametrize_again(fresh, recorded)
    assert parametrizations_of(fresh)["parametrizations"] == recorded
    fresh.load_state_dict(layer.state_dict())
    given = torch.randn(3, 6)
    assert torch.allclose(fresh.eval()(given), layer.eval()(given))


def test_a_class_of_the_users_is_not_made_again() -> None:
    layer = nn.Linear(6, 4)
    FORMS["a pattern"][0](layer)
    with pytest.raises(ValueError, match=r"'weight' is computed by .*Pattern"):
        parametrize_again(nn.Linear(6, 4), parametrizations_of(layer)["parametrizations"])


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "prunable", "layer"),
    [
        ("a.weight", (4, 6), "float32", True, True),
        ("a.weight_v", (4, 6, 3), "float32", True, True),
        ("a.weight_g", (4, 1, 1), "float32", False, False),
        ("a.weight_v", (6,), "float32", False, False),  # spectral norm's vector
        ("a.weight_orig", (4, 6), "float32", True, True),
        ("a.parametrizations.weight.original", (4, 6), "float32", True, True),
        ("a.parametrizations.weight.original1", (4, 6), "float32", True, True),
        ("a.parametrizations.weight.original0", (4, 1), "float32", False, False),
        ("a.parametrizations.weight.0._u", (4,), "float32", False, False),
        ("tok_embeddings.parametrizations.weight.original1", (9, 6), "float32", False, False),
        ("a.kernel", (6, 4), "float32", True, True),
        ("a.weight_packed", (4, 1), "int32", False, True),
        ("a.weight_scale", (4, 2), "float8_e4m3fn", False, False),
        ("a.W_q", (4, 6), "uint8", False, True),
        ("a.gate_up_proj_blocks", (2, 8, 2, 16), "uint8", False, True),
        ("a.gate_up_proj_scales", (2, 8, 2), "uint8", False, False),
        ("a.codes", (4, 2, 2), "int8", False, True),
        ("position_ids", (1, 77), "int64", False, False),
        ("a.qzeros", (4, 6), "int32", False, False),
        ("a.w_in", (4, 6), "float32", False, False),
    ],
)  # fmt: skip
def test_by_name(name: str, shape: tuple[int, ...], dtype: str, prunable: bool, layer: bool) -> None:
    assert (looks_prunable(name, shape), looks_like_layer(name, shape, dtype)) == (prunable, layer)
