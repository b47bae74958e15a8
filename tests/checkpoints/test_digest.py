"""The digests that pin a plan: equal for the same work, another for any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_ir.checkpoints.resumable import digests
from elastic_ir.formats.packed_masks import StoredMask
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.tensors.lazy import Mask, MaskedData, TensorData

TENSOR = FileTensor(Path("a/x.safetensors"), 8, (3,), "float16", (1, 2, 3))
MASK = Mask((3,), b"\xa0")


def both(data: TensorData, name: str = "w", file: str = "f", text: str = "") -> tuple[str, str]:
    return digests({file: {name: data}}, {"config.json": text})


def test_the_same_work() -> None:
    twin = FileTensor(Path("b/x.safetensors"), 8, (3,), "float16", (1, 2, 3))
    assert both(TENSOR) == both(twin)  # the folder was moved, or is reached another way
    assert both(MaskedData(TENSOR, MASK)) == both(MaskedData(twin, Mask((3,), b"\xa0")))


@pytest.mark.parametrize(
    "other",
    [
        FileTensor(Path("a/y.safetensors"), 8, (3,), "float16", (1, 2, 3)),
        FileTensor(Path("a/x.safetensors"), 16, (3,), "float16", (1, 2, 3)),
        FileTensor(Path("a/x.safetensors"), 8, (3, 1), "float16", (1, 2, 3)),
        FileTensor(Path("a/x.safetensors"), 8, (3,), "bfloat16", (1, 2, 3)),
        MaskedData(TENSOR, MASK),
        MaskedData(TENSOR, Mask((3,), b"\xc0")),
        MaskedData(TENSOR, StoredMask("w", TENSOR, (3,), "bool")),
        MaskedData(TENSOR, StoredMask("w", TENSOR, (3,), "float32")),
    ],
)
def test_other_work(other: TensorData) -> None:
    plans = [both(TENSOR)[0], both(MaskedData(TENSOR, Mask((3,), b"\x80")))[0], both(other)[0]]
    assert len(set(plans)) == 3


def test_names_files_and_texts() -> None:
    assert len({both(TENSOR), both(TENSOR, "v"), both(TENSOR, "w", "g"), both(TENSOR, text="x")}) == 4


def test_a_source_that_changed() -> None:
    other = FileTensor(Path("a/x.safetensors"), 8, (3,), "float16", (1, 2, 4))
    assert both(TENSOR)[0] == both(other)[0] and both(TENSOR)[1] != both(other)[1]
    masked = [MaskedData(TENSOR, StoredMask("w", one, (3,), "bool")) for one in (TENSOR, other)]
    assert both(masked[0])[0] == both(masked[1])[0] and both(masked[0])[1] != both(masked[1])[1]


def test_what_does_not_say_what_it_yields_is_never_the_same() -> None:
    class Odd:
        shape, dtype = (3,), "float16"

        def chunks(self) -> Iterator[memoryview]:
            yield memoryview(bytes(6))

    odd = Odd()
    assert both(odd) != both(odd)
