"""What clones and deletions do to ties, masks and buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import MaskError, VerifyError
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tensors.torch_bridge import TorchData

EXAMPLE = torch.ones(2, 4)


class Block(nn.Module):
    """A residual block with a norm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + torch.relu(self.norm(self.fc(x)))
        return out


class Tied(nn.Module):
    """Neighbours in pairs share one matrix."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        for left, right in zip(self.blocks[::2], self.blocks[1::2], strict=False):
            right.fc.weight = left.fc.weight  # type: ignore[union-attr]
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


def groups(graph: eir.Graph) -> list[int]:
    """For each block the first block that has the same matrix."""
    module = graph.to_module().eval()
    matrices = [module.get_parameter(f"blocks.{n}.fc.weight") for n in range(len(graph.stages[0]))]
    return [next(i for i, other in enumerate(matrices) if other is matrix) for matrix in matrices]


@pytest.mark.slow
def test_weights_tied_across_blocks_stay_tied() -> None:
    """A clone joins its source's tie; there and back restores the source."""
    graph = eir.trace(Tied(4).eval(), (EXAMPLE,))
    assert groups(graph) == [0, 0, 2, 2]
    deeper = eir.stretch(graph, to_units=8)
    assert groups(deeper) == [0, 0, 2, 2, 0, 0, 2, 2]
    assert deeper.parameter_count() == graph.parameter_count() + 4 * (
        4 + 4 + 4
    )  # biases and norms are their own
    assert str(eir.squeeze(deeper, to_units=4)) == str(graph)
    assert groups(eir.squeeze(graph, drop=[0, 2])) == [0, 1]


def test_a_tie_that_is_left_alone_is_no_tie_any_more() -> None:
    """Once a partner is deleted, the next clone owns its matrix."""
    graph = eir.squeeze(eir.trace(Tied(4).eval(), (EXAMPLE,)), drop=[1, 3])
    assert groups(eir.stretch(graph, to_units=4)) == [0, 1, 2, 3]


def test_a_tied_weight_s_mask_is_one_mask() -> None:
    graph = eir.trace(Tied(4).eval(), (EXAMPLE,), masks={"blocks.0.fc.weight": torch.eye(4)})
    deeper = eir.stretch(graph, to_units=6)
    masked = [f"blocks.{n}.fc.weight" for n in (0, 1, 4, 5)]
    assert list(deeper.masks()) == masked
    state = deeper.state_dict()
    assert all(state[name].count_nonzero() <= 4 for name in masked)
    assert state["blocks.2.fc.weight"].count_nonzero() == 16


def test_buffers_follow_their_block() -> None:
    model = Tied(2)
    for number, block in enumerate(model.blocks):
        block.norm.running_mean.fill_(number + 1.0)  # type: ignore[union-attr, operator]
        block.norm.num_batches_tracked.fill_(number + 7)  # type: ignore[union-attr, operator]
    state = eir.stretch(eir.trace(model.eval(), (EXAMPLE,)), plan=[1, 0, 1, 1]).state_dict()
    assert [state[f"blocks.{n}.norm.running_mean"][0].item() for n in range(4)] == [2, 1, 2, 2]
    assert [state[f"blocks.{n}.norm.num_batches_tracked"].item() for n in range(4)] == [8, 7, 8, 8]
    assert len({state[f"blocks.{n}.norm.running_mean"].data_ptr() for n in range(4)}) == 4


def test_masks_come_as_masks_arrays_and_tensors() -> None:
    graph = eir.trace(Tied(2), (EXAMPLE,))
    keep = torch.eye(4)
    given = (keep, keep.bool(), keep.bfloat16(), keep.numpy().astype(bool), Mask.from_array(keep.numpy()))
    with Rewriter(graph) as rewriter:
        for mask in given:
            rewriter.set_mask("head.weight", None)
            assert graph.weights["head.weight"].mask is None
            rewriter.set_mask("blocks.0.fc.weight", mask)
            found = graph.weights["blocks.0.fc.weight"].mask
            assert found is not None and np.array_equal(found.array(), np.eye(4, dtype=bool))
            rewriter.set_mask("blocks.0.fc.weight", None)


@pytest.mark.parametrize(
    ("name", "mask", "error", "message"),
    [
        ("blocks.0.fc.weight", torch.ones(3, 4), VerifyError, r"has shape \(3, 4\), its weight \(4, 4\)"),
        (
            "blocks.0.fc.weight",
            torch.full((4, 4), 2.0),
            MaskError,
            "holds the value 2.0; a mask holds only 0 and 1",
        ),
        ("blocks.0.fc.weight", [[1, 0]], MaskError, "is of type list; give Mask.from_array"),
        (
            "blocks.0.fc.wieght",
            torch.ones(4, 4),
            VerifyError,
            "^Tied has no weight 'blocks.0.fc.wieght'; did you mean",
        ),
        ("nope", torch.ones(4, 4), VerifyError, "^Tied has no weight 'nope'$"),
    ],
)
def test_what_is_no_mask_is_said(name: str, mask: object, error: type[Exception], message: str) -> None:
    rewriter = Rewriter(eir.trace(Tied(2), (EXAMPLE,)))
    with pytest.raises(error, match=message):
        rewriter.set_mask(name, mask)


def test_data_is_lazy_and_of_a_weight_that_is_there() -> None:
    graph = eir.trace(Tied(2), (EXAMPLE,))
    rewriter = Rewriter(graph)
    with pytest.raises(
        VerifyError, match=r"'head.bias' is of type Tensor, not lazy; give a recipe of .*TorchData"
    ):
        rewriter.set_data("head.bias", torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match=r"^Tied has no weight 'head.bais'; did you mean 'head.bias'"):
        rewriter.set_data("head.bais", TorchData(torch.ones(2)))
    rewriter.set_data("head.bias", TorchData(torch.ones(2)))
    assert torch.equal(graph.to_module().get_parameter("head.bias"), torch.ones(2))
