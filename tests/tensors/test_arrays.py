"""Multiples of tensors: the bytes that torch gives, without torch, and in pieces."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from elastic_ir.tensors.arrays import FLOATS
from elastic_ir.tensors.lazy import InlineData, nbytes
from elastic_ir.tensors.recipes import Scaled, Zeros
from elastic_ir.tensors.torch_bridge import TorchData


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("factor", [0.5, 0.1, -0.7071067811865476, 1 / 3, 3.0e5, 1e-7, 0.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_multiple_is_that_of_torch(dtype: str, factor: float) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    values[:4] = torch.tensor([float("inf"), 0.0, -0.0, 1e-39])
    tensor = values.to(getattr(torch, dtype))
    made = b"".join(Scaled(TorchData(tensor), factor).chunks())
    expected = tensor * factor
    known = ~expected.isnan()
    again = torch.frombuffer(bytearray(made), dtype=tensor.dtype)
    assert raw(again[known]) == raw(expected[known])
    assert bool(again[~known].isnan().all())


def test_ties_go_to_even() -> None:
    bits = torch.arange(0x3F80, 0x4080, dtype=torch.int16)
    tensor = bits.view(torch.bfloat16)
    assert b"".join(Scaled(TorchData(tensor), 1.00390625).chunks()) == raw(tensor * 1.00390625)


def test_a_not_a_number_stays_one() -> None:
    data = InlineData(
        (2,), "bfloat16", b"\xff\xff\xff\x7f"
    )  # the largest payloads, which rounding up would lose
    assert b"".join(Scaled(data, 2.0).chunks()) == b"\xc0\x7f\xc0\x7f"


def test_zeros_come_in_pieces() -> None:
    data = Zeros((3, 500_000), "bfloat16")
    pieces = [bytes(chunk) for chunk in data.chunks()]
    assert len(pieces) == 3 and b"".join(pieces) == bytes(nbytes(data))


def test_no_torch() -> None:
    code = (
        "import sys; from elastic_ir.tensors.recipes import Scaled; from elastic_ir.tensors.lazy import InlineData\n"
        "for dtype in ('float16', 'bfloat16'):\n"
        "    assert list(map(bytes, Scaled(InlineData((1,), dtype, b'\\0\\x40'), 0.5).chunks()))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
