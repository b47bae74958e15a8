"""What some networks hold beside their layers: sparse buffers, and what deepcopy refuses."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

X = torch.randn(2, 6)


class Held(nn.Module):
    """Layers, and something beside them that no layer reads."""

    def __init__(self, count: int, held: object = None, sparse: bool | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))
        self.held = held
        if sparse is not None:
            self.register_buffer("heads", torch.eye(3).to_sparse(), persistent=sparse)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


@pytest.mark.parametrize(
    ("held", "sparse", "kept"),
    [(None, False, True), (staticmethod(torch.relu), None, True), (threading.Lock(), None, False)],
    ids=["sparse buffer (Whisper)", "static method", "lock"],
)
def test_it_is_no_hindrance(held: object, sparse: bool | None, kept: bool, tmp_path: Path) -> None:
    model, native = Held(3, held, sparse).eval(), Held(4, held, sparse).eval()
    deeper = eir.stretch(eir.trace(model, (X,)), to_units=4)
    made = deeper.to_module()
    assert (type(made) is Held) == kept
    if not kept:  # the operations take the place of a class that cannot be copied
        assert "cannot be copied" in deeper.emitted.replaced
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(made(X), native(X))
    eir.save(deeper, tmp_path / "deeper.pt")
    native.load_state_dict(torch.load(tmp_path / "deeper.pt", weights_only=True))
    assert [len(stage) for stage in eir.load(tmp_path / "deeper.pt").stages] == [4]


def test_a_sparse_tensor_of_the_state_dict_is_not_written(tmp_path: Path) -> None:
    deeper = eir.stretch(eir.trace(Held(3, sparse=True).eval(), (X,)), to_units=4)
    with pytest.raises(eir.EmitError, match=r"is sparse .* and no file holds it as it is"):
        eir.save(deeper, tmp_path / "deeper.pt")
    assert not list(tmp_path.iterdir())
