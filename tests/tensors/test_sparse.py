"""Sparse layouts of torch: every one is made dense as torch does it, and wrong indices are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import elastic_ir as eir
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.tensors import sparse
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tensors.sparse import data_of
from elastic_ir.tensors.torch_bridge import to_torch
from elastic_ir.zoo import cifar_resnet

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")


def matrix() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 8).relu()


LAYOUTS: dict[str, Any] = {
    "coo": lambda dense: dense.to_sparse(), "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(), "bsr": lambda dense: dense.to_sparse_bsr((2, 4)),
    "bsc": lambda dense: dense.to_sparse_bsc((3, 2)), "hybrid": lambda dense: dense.to_sparse(1),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [sparse._STEP, 64])
def test_every_layout_is_read_as_torch_makes_it_dense(
    layout: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "_STEP", step)
    given = LAYOUTS[layout](matrix())
    data = data_of(given, "a")
    assert (data.shape, data.dtype) == ((6, 8), "float32")
    assert torch.equal(to_torch(data), matrix())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_dtypes_stay(dtype: torch.dtype) -> None:
    dense = matrix().to(dtype)
    found = to_torch(data_of(dense.to_sparse(), "a"))
    assert found.dtype == dtype
    assert torch.equal(found, dense)


def test_entries_of_one_place_are_added_and_empty_ones_are_zero() -> None:
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 0, 1]]), torch.tensor([1.0, 2.0, 3.0]), (4,))
    assert to_torch(data_of(twice, "a")).tolist() == [2.0, 4.0, 0.0, 0.0]
    none = torch.sparse_coo_tensor(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), (2, 3))
    assert torch.equal(to_torch(data_of(none, "a")), torch.zeros(2, 3))
    convolution = torch.randn(4, 3, 3, 3).relu()
    assert torch.equal(to_torch(data_of(convolution.to_sparse(), "a")), convolution)


def test_indices_that_lie_are_refused() -> None:
    far = torch.sparse_coo_tensor(
        torch.tensor([[0, 99]]), torch.ones(2), (4,), check_invariants=False, is_coalesced=True
    )
    with pytest.raises(SourceError, match=r"'a' cannot be read as a sparse tensor \(size is inconsistent"):
        data_of(far, "a")
    row = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 900]), torch.tensor([0, 77]), torch.ones(2), (2, 4), check_invariants=False
    )
    with pytest.raises(SourceError, match=r"'a' cannot be read as a sparse tensor .*tensor\.to_dense\(\)"):
        data_of(row, "a")
    huge = torch.sparse_coo_tensor(
        torch.tensor([[0], [0]]), torch.ones(1), (1 << 20, 1 << 20), check_invariants=False
    )
    with pytest.raises(SourceError, match=r"'a' is of 1099511627776 numbers and stores 1; .*to_dense"):
        data_of(huge, "a")


# -- in files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_weights_of_a_state_dict_are_stretched(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(14, width=4)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name.endswith("conv2.weight"):
                tensor.relu_()
    given = dict(state)
    for name, tensor in state.items():
        if name.endswith("conv2.weight"):
            given[name] = tensor.to_sparse()
    given["fc.weight"] = LAYOUTS[layout](state["fc.weight"])
    torch.save(given, tmp_path / "sparse.pt")
    torch.save(state, tmp_path / "dense.pt")
    arch = cifar_resnet(14, width=4)
    one = eir.stretch(eir.load(tmp_path / "sparse.pt", arch=arch), to_depth=20)
    other = eir.stretch(eir.load(tmp_path / "dense.pt", arch=arch), to_depth=20)
    eir.save(one, tmp_path / "deeper.pt")
    found, wanted = torch.load(tmp_path / "deeper.pt", weights_only=True), other.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    masked = eir.load(tmp_path / "sparse.pt", arch=arch, mask_from_zeros=True)
    assert masked.weights["layer1.0.conv2.weight"].mask is not None


def test_a_damaged_sparse_tensor_in_a_file_is_named(tmp_path: Path) -> None:
    far = torch.sparse_coo_tensor(torch.tensor([[0, 99]]), torch.ones(2), (4,), check_invariants=False)
    torch.save({"a.weight": far, "b.weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"^w\.pt: 'a\.weight' cannot be read as a sparse tensor"):
        eir.load(tmp_path / "w.pt")


def test_a_tied_sparse_tensor_stays_tied(tmp_path: Path) -> None:
    shared = matrix().to_sparse()
    torch.save({"layers.0.weight": shared, "layers.1.weight": shared}, tmp_path / "w.pt")
    weights = eir.load(tmp_path / "w.pt").weights
    assert weights["layers.0.weight"].storage is weights["layers.1.weight"].storage


def test_a_network_with_a_sparse_parameter_is_refused_by_name(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    layer.weight = torch.nn.Parameter(layer.weight.detach().to_sparse())
    torch.save(torch.nn.Sequential(layer), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"w\.pt: '0\.weight' is stored as sparse_coo; .*to_dense"):
        eir.load(tmp_path / "w.pt")


def test_sparse_masks() -> None:
    dense = matrix() > 0
    for layout in ("coo", "csr"):
        mask = Mask.of(LAYOUTS[layout](dense.float()), "a")
        assert mask.array().tolist() == dense.tolist()
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2), (4,))
    with pytest.raises(MaskError, match=r"the mask of 'a' holds the value 2\.0"):
        Mask.of(twice, "a")
