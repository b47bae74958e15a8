"""The reader that docs/ticket-file.md shows: it is run, and reads what we write, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import elastic_ir as eir
from elastic_ir.formats.safetensors import DTYPES
from elastic_ir.formats.ticket import write_ticket
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, Mask
from elastic_ir.tensors.weights import Storage
from tests.emit.nets import ticket

DOCS = Path(__file__).parents[2] / "docs" / "ticket-file.md"


@pytest.fixture(scope="module")
def read() -> Any:
    """The function, as it stands in the text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "def read_ticket" in block)
    body = code[code.index("def read_ticket") :]
    assert len([line for line in body.splitlines() if line]) <= 20
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names["read_ticket"]


def test_it_reads_a_network(tmp_path: Path, read: Any) -> None:
    graph = eir.stretch(ticket(), to_depth=20)
    eir.save(graph, tmp_path / "a.ticket")
    weights, masks = read(tmp_path / "a.ticket")
    state = graph.state_dict()
    assert weights.keys() == state.keys()
    assert masks.keys() == graph.masks().keys()
    for name, tensor in state.items():
        assert weights[name].dtype == tensor.numpy().dtype
        assert weights[name].shape == tuple(tensor.shape)
        assert weights[name].tobytes() == tensor.numpy().tobytes()
    assert all(torch.equal(torch.from_numpy(masks[n]), m.bool()) for n, m in graph.masks().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_reads_every_dtype(tmp_path: Path, read: Any, dtype: str) -> None:
    rng = np.random.default_rng(2)
    weights = {}
    for index, shape in enumerate([(), (0, 3), (7,), (2, 3, 5)]):
        size = int(np.prod(shape))
        raw = rng.integers(0, 2 if dtype == "bool" else 256, size * ITEM_SIZES[dtype], np.uint8).tobytes()
        for kind, density in (("some", 0.5), ("all", 1.0), ("none", 0.0)):
            mask = Mask.from_array(np.asarray(rng.random(shape) < density))
            weights[f"{kind}.{index}"] = Storage(InlineData(shape, dtype, raw), mask)
    write_ticket(tmp_path / "a.ticket", weights)
    values, masks = read(tmp_path / "a.ticket")
    assert values.keys() == masks.keys() == weights.keys()
    for name, storage in weights.items():
        assert storage.mask is not None
        assert values[name].shape == storage.data.shape
        assert values[name].tobytes() == b"".join(storage.emitted().chunks())
        assert np.array_equal(masks[name], storage.mask.array())
