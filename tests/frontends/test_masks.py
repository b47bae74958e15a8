"""Masks from files of every form, from pruned state dicts and from zeros; wrong ones are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import elastic_ir as eir
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats.safetensors import DTYPES, read_safetensors
from elastic_ir.frontends.masks import attach_masks, masks_from_state, masks_from_zeros, read_masks
from elastic_ir.tensors.lazy import Mask, ShapeOnly
from elastic_ir.tensors.torch_bridge import TorchData, mask_to_torch
from elastic_ir.tensors.weights import Storage, Weight

Write = Callable[[dict[str, torch.Tensor], Path], None]
PATTERN = [[1, 0, 1], [0, 0, 1]]


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)


def write_pt(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


FORMS = [("m.safetensors", write_safetensors), ("m.pt", write_pt), ("mask.pth", write_pt)]


@pytest.mark.parametrize(("name", "write"), FORMS)
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float8_e8m0fnu"])
def test_mask_files_of_any_dtype(tmp_path: Path, name: str, write: Write, dtype: str) -> None:
    tensor = torch.tensor(PATTERN).to(torch.float32).to(getattr(torch, dtype))
    write({"a.weight": tensor, "b.weight": tensor[:1].clone()}, tmp_path / name)
    masks = read_masks(tmp_path / name)
    assert list(masks) == ["a.weight", "b.weight"]
    mask = masks["a.weight"]
    assert (mask.shape, mask.dtype, mask.zeros) == ((2, 3), dtype, 3)
    assert mask.array().tolist() == (np.array(PATTERN) == 1).tolist()
    assert torch.equal(mask_to_torch(mask, torch.int8), torch.tensor(PATTERN, dtype=torch.int8))


@pytest.mark.parametrize(("name", "write"), FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int64", "uint8"])
def test_other_values_are_refused_by_name(tmp_path: Path, name: str, write: Write, dtype: str) -> None:
    write({"a.weight": torch.tensor([0.0, 2.0]).to(getattr(torch, dtype))}, tmp_path / name)
    with pytest.raises(
        MaskError, match=r"the mask of 'a\.weight' holds .*only 0 and 1|other values than 0 and 1"
    ):
        read_masks(tmp_path / name)


def test_nan_and_negative_zero() -> None:
    with pytest.raises(MaskError, match="the mask of 'a' holds the value nan; a mask holds only 0 and 1"):
        Mask.of(np.array([1.0, np.nan]), "a")
    assert Mask.of(TorchData(torch.tensor([-0.0, 1.0]).to(torch.float8_e5m2)), "a").zeros == 1
    with pytest.raises(MaskError, match="has the dtype float8_e8m0fnu, which has no zero; give it as bool"):
        Mask.of(TorchData(torch.ones(1).to(torch.float8_e8m0fnu)), "a")


def test_names_and_places_of_masks(tmp_path: Path) -> None:
    ones = torch.ones(2)
    torch.save({"masks": {"module.a.weight_mask": ones}, "epoch": 1}, tmp_path / "m.pt")
    assert list(read_masks(tmp_path / "m.pt")) == ["a.weight"]
    torch.save({"a.weight": ones, "a.weight_mask": ones}, tmp_path / "m.pt")
    with pytest.raises(MaskError, match=r"m\.pt holds two masks for 'a\.weight'"):
        read_masks(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1], nn.Linear(1, 1)])
def test_files_without_masks(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(
        MaskError, match=r"m\.pt holds no masks; a mask file maps names of weights to tensors"
    ):
        read_masks(tmp_path / "m.pt")


def test_unreadable_mask_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_masks(tmp_path / "m.pt")
    with pytest.raises(SourceError, match="does not exist"):
        read_masks(tmp_path / "m.safetensors")


# -- state dicts under torch.nn.utils.prune ----------------------------------------------------------------------------


def pruned_state() -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    prune.random_unstructured(model[0], "bias", 0.5)  # type: ignore[no-untyped-call]
    return dict(model.state_dict())


def test_pairs_become_weights_and_masks() -> None:
    state = pruned_state()
    weights, masks = masks_from_state(state)
    wanted = [name.replace("_orig", "") for name in state if not name.endswith("_mask")]
    assert list(weights) == wanted
    assert weights["0.weight"] is state["0.weight_orig"]
    assert set(masks) == {"0.weight", "0.bias"}
    assert torch.equal(mask_to_torch(masks["0.weight"]), state["0.weight_mask"])
    nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)).load_state_dict(weights)


def test_pairs_in_a_lazy_file(tmp_path: Path) -> None:
    save_file(pruned_state(), tmp_path / "a.safetensors")
    weights, masks = masks_from_state(read_safetensors(tmp_path / "a.safetensors")[0])
    assert "0.weight" in weights
    assert masks["0.weight"].zeros == 2
    assert masks["0.weight"].dtype == "float32"


def test_what_is_no_pair_is_left_alone() -> None:
    state = {"a_orig": np.ones(1), "b_mask": np.ones(1), "c": np.ones(1)}
    assert masks_from_state(state) == (state, {})


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a_orig": np.ones(2), "a_mask": np.ones(3)}, "the mask of 'a' has shape [3], its weight [2]"),
        ({"a_orig": np.ones(2), "a_mask": np.full(2, 0.5)}, "the mask of 'a' holds the value 0.5"),
        (
            {"a": np.ones(2), "a_orig": np.ones(2), "a_mask": np.ones(2)},
            "the state dict holds both 'a' and 'a_orig'",
        ),
    ],
)
def test_pairs_that_do_not_fit(state: dict[str, Any], said: str) -> None:
    with pytest.raises(MaskError) as caught:
        masks_from_state(state)
    assert said in str(caught.value)


# -- exact zeros -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES if dtype not in ("bool", "uint8", "float8_e8m0fnu")]
)
def test_zeros_of_either_sign(dtype: str) -> None:
    tensor = torch.tensor([0.0, -0.0, 1.0, 2.0]).to(getattr(torch, dtype))
    masks = masks_from_zeros({"some": TorchData(tensor), "dense": TorchData(tensor[2:])})
    assert masks == {"some": Mask.from_array(np.array([False, False, True, True]))}


def test_zeros_beside_small_or_odd_numbers() -> None:
    values = TorchData(torch.tensor([[0.0, 5e-324], [torch.nan, -torch.inf]], dtype=torch.float64))
    assert masks_from_zeros({"a": values})["a"].array().tolist() == [[False, True], [True, True]]
    tiny = torch.tensor([0.0, 1e-45])
    assert masks_from_zeros({"a": TorchData(tiny)})["a"].zeros == 1


# -- attaching ---------------------------------------------------------------------------------------------------------


def test_attaching_names_what_does_not_fit() -> None:
    weights = {
        name: Weight(name, Storage(ShapeOnly((2,), "float32")), name) for name in ("a.weight", "b.weight")
    }
    mask = Mask.from_array(np.array([1, 0]))
    with pytest.raises(MaskError, match=r"the mask 'c\.weight' fits no weight .*a\.weight, b\.weight"):
        attach_masks(weights, {"a.weight": mask, "c.weight": mask})
    assert weights["a.weight"].mask is None, "nothing is attached"
    with pytest.raises(MaskError, match=r"the mask of 'a\.weight' has shape \[1\], its weight \[2\]"):
        attach_masks(weights, {"a.weight": Mask.from_array(np.array([1]))})
    attach_masks(weights, {"a.weight": mask})
    assert weights["a.weight"].mask == mask


# -- masks by the names of modules -------------------------------------------------------------------------------------


def some_weights() -> dict[str, Weight]:
    names = {
        "a.weight": (2, 3),
        "a.bias": (2,),
        "rnn.weight_ih_l0": (4, 3),
        "rnn.weight_hh_l0": (4, 1),
        "attn.in_proj": (2, 3),
    }
    return {
        name: Weight(name, Storage(ShapeOnly(shape, "float32")), name, True, prunable=len(shape) > 1)
        for name, shape in names.items()
    }


@pytest.mark.parametrize("name", ["a", "a.mask", "a.weight", "a.weight.mask"])
def test_a_module_stands_for_its_weight(name: str) -> None:
    weights = some_weights()
    attach_masks(weights, {name: np.array(PATTERN)})
    mask = weights["a.weight"].storage.mask
    assert mask is not None
    assert mask.zeros == 3
    attach_masks(weights, {"attn": np.array(PATTERN)})
    assert weights["attn.in_proj"].storage.mask is not None


def test_modules_that_do_not_say_which_weight() -> None:
    with pytest.raises(
        MaskError,
        match=r"'rnn' is of a module with several weights \(rnn\.weight_ih_l0, rnn\.weight_hh_l0\); name",
    ):
        attach_masks(some_weights(), {"rnn": np.array(PATTERN)})
    with pytest.raises(MaskError, match=r"there are two masks for 'a\.weight'; one is under 'a'"):
        attach_masks(some_weights(), {"a.weight": np.array(PATTERN), "a": np.array(PATTERN)})
    with pytest.raises(MaskError, match="the mask 'b' fits no weight of the network"):
        attach_masks(some_weights(), {"b": np.array(PATTERN)})
    with pytest.raises(MaskError, match=r"the mask of 'a\.weight' has shape \[1\], its weight \[2, 3\]"):
        attach_masks(some_weights(), {"a": np.ones(1)})


@pytest.mark.parametrize("key", [None, "masks"])
def test_files_of_masks_by_module_and_parameter(tmp_path: Path, key: str | None) -> None:
    by_module = {
        "a": {"weight": torch.ones(2, 3), "bias": None},
        "b.0": {"weight": torch.ones(2).to_sparse()},
    }
    torch.save(by_module if key is None else {key: by_module, "epoch": 1}, tmp_path / "m.pt")
    assert list(read_masks(tmp_path / "m.pt")) == ["a.weight", "b.0.weight"]


def test_masks_by_module_beside_a_state_dict(tmp_path: Path) -> None:
    state = {f"layers.{i}.weight": torch.ones(2, 2) for i in range(3)}
    kept = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    for masks in ({"layers.1": kept}, {"layers.1": {"weight": kept, "bias": None}}):
        torch.save({"state_dict": state, "masks": masks}, tmp_path / "m.pt")
        graph = eir.load(tmp_path / "m.pt")
        mask = graph.weights["layers.1.weight"].mask
        assert mask is not None
        assert mask.zeros == 1
        assert graph.info.left_behind == ()
