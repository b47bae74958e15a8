"""Masks in numpy's .npz: arrays of every order by weight name; pickles, lies and single matrices are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats.npz import read_npz
from elastic_ir.frontends.masks import read_masks
from elastic_ir.tensors.arrays import as_array

PATTERN = np.array([[1, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "<f4", ">f4", ">i8", "float16", "float64"])
def test_arrays_of_any_dtype_and_order(tmp_path: Path, save: Any, dtype: str) -> None:
    array = PATTERN.astype(dtype)
    turned = np.asfortranarray(array)
    save(tmp_path / "m.npz", **{"a.weight": array, "b.weight_mask": turned, "c": np.ones((), dtype)})
    masks = read_masks(tmp_path / "m.npz")
    assert list(masks) == ["a.weight", "b.weight", "c"]
    for name in ("a.weight", "b.weight"):
        assert masks[name].array().tolist() == (PATTERN == 1).tolist()
    assert masks["c"].shape == ()


def test_large_masks_are_read_piece_by_piece(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((1500, 1001)) > 0.5
    np.savez_compressed(tmp_path / "m.npz", a=array, b=np.asfortranarray(array.astype("float32")))
    masks = read_masks(tmp_path / "m.npz")
    assert np.array_equal(masks["a"].array(), array)
    assert np.array_equal(masks["b"].array(), array)
    assert len(list(read_npz(tmp_path / "m.npz")["a"].chunks())) == 2


def test_names_of_a_wrapped_network(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"module.a.weight": PATTERN, "module.b.weight": PATTERN}
    np.savez(tmp_path / "m.npz", **arrays)
    assert list(read_masks(tmp_path / "m.npz")) == ["a.weight", "b.weight"]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", masks=np.array({"a": PATTERN}, dtype=object))
    with pytest.raises(SourceError, match=r"m\.npz: 'masks' is an array of objects, a pickle, which may run"):
        read_masks(tmp_path / "m.npz")
    np.save(tmp_path / "m.npy", PATTERN)
    with pytest.raises(
        MaskError, match=r"m\.npy is a single array without a weight's name; save masks by name"
    ):
        read_masks(tmp_path / "m.npy")


def test_a_matrix_of_scipy_has_no_name(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    scipy.save_npz(tmp_path / "m.npz", scipy.csr_matrix(PATTERN))
    with pytest.raises(
        SourceError, match=r"m\.npz is one sparse matrix of scipy without a weight's name; save"
    ):
        read_masks(tmp_path / "m.npz")


def test_other_values_are_refused(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a.weight": PATTERN * 2}
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(
        MaskError, match=r"the mask of 'a\.weight' holds the value 2; a mask holds only 0 and 1"
    ):
        read_masks(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", a=np.array(["x"]))
    with pytest.raises(SourceError, match=r"m\.npz: 'a' has the dtype <U1, which no tensor has"):
        read_masks(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz")
    with pytest.raises(MaskError, match=r"m\.npz holds no masks"):
        read_masks(tmp_path / "m.npz")


def member(array: np.ndarray[Any, Any], keep: int | None = None) -> bytes:
    """The bytes of a .npy file, or the first of them."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()[:keep]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (member(PATTERN, 140), "is damaged: 'a' of int64[2, 3] takes 176 bytes, and has 140"),
        (member(PATTERN, 3), "is not an .npz file, or damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'f4' }\n", "is not an .npz file, or damaged"),
        (member(PATTERN).replace(b"(2, 3)", b"(-2,3)"), "'a'"),
        (member(PATTERN).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x07"), "version"),
    ],
)  # fmt: skip
def test_damaged_arrays(tmp_path: Path, content: bytes, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(SourceError) as caught:
        read_masks(tmp_path / "m.npz")
    assert said in str(caught.value)


def test_damaged_zips(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", a=np.random.default_rng(0).random((100, 100)) > 0.5)
    sound = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(sound[: len(sound) // 2])
    with pytest.raises(
        SourceError, match=r"m\.npz is not an \.npz file, or damaged \(File is not a zip file"
    ):
        read_npz(tmp_path / "m.npz")
    (tmp_path / "m.npz").write_bytes(sound[:300] + bytes(200) + sound[500:])
    with pytest.raises(SourceError, match=r"m\.npz is (damaged|not an)"):
        as_array(read_npz(tmp_path / "m.npz")["a"])
    with pytest.raises(SourceError, match="does not exist"):
        read_npz(tmp_path / "missing.npz")
