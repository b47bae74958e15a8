"""Comparisons of outputs: what agrees, what does not, and that none can pass without having compared anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import elastic_ir as eir
from elastic_ir.emit.comparison import Outputs, compare_outputs, refuse_not_finite
from elastic_ir.emit.example_runs import another, calls_of, run_module
from elastic_ir.ir.example_inputs import Inputs

NAN, INF = float("nan"), float("inf")


def outputs(*arrays: Any, dtype: str = "float32") -> Outputs:
    made = tuple(np.asarray(a, dtype if np.asarray(a).dtype.kind == "f" else None) for a in arrays)
    return Outputs((made,), dtype)


def compare(found: Outputs, expected: Outputs) -> float:
    return compare_outputs(found, expected, "ours", "the graph's").largest


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        ([[1.0, NAN]], [[1.0, 2.0]], r"output 0 of ours holds 1 numbers that are not finite, of 2 \(NaN\)"),
        ([[NAN, NAN]], [[NAN, NAN]], r"output 0 of ours holds 2 numbers that are not finite, of 2 \(NaN\)"),
        ([[1.0, 2.0]], [[1.0, NAN]], r"output 0 of the graph holds 1 numbers that are not finite, of 2 \(NaN\)"),
        ([[1.0, INF]], [[1.0, 2.0]], r"1 numbers that are not finite, of 2 \(infinite\), where the graph's are finite"),
        ([[1.0, INF]], [[1.0, -INF]], "is not infinite where the graph's is"),
        ([[1.0, 2.0]], [[1.0, INF]], "is not infinite where the graph's is"),
        ([[1.0, 2.1]], [[1.0, 2.0]], r"differs from the graph's by 0\.1, 0\.05 of the largest number, and 0\.0001 is"),
        ([[1e-9, 2e-9]], [[1e-9, 1e-9]], "differs from the graph's by 1e-09, 1 of the largest number"),
        ([[0.0, 1e-9]], [[0.0, 0.0]], "differs from the graph's by 1e-09, inf of the largest number"),
        ([[1.0, -INF, 3.0]], [[1.0, -INF, 2.0]], "differs from the graph's by 1, 0.5 of the largest number"),
        ([[-1e9, 1.0]], [[-1e9, 2.0]], "differs from the graph's by 1, 0.5 of the largest number"),
        ([[1, 2]], [[1, 3]], "output 0 of ours differs from the graph's"),
        ([[True]], [[False]], "output 0 of ours differs from the graph's"),
        ([[1, 2]], [[1.0, 2.0]], "output 0 of ours differs from the graph's"),
        ([[1.0]], [[1.0, 2.0]], r"output 0 of ours is \[1, 1\], the graph's \[1, 2\]"),
        ([[1.0]], None, "ours has 1 outputs, the graph 2"),
        ([1.0, 2j], [1.0, 3j], "differs from the graph's by 1, 0.333 of the largest number"),
    ],
)  # fmt: skip
def test_what_does_not_agree(found: Any, expected: Any, said: str) -> None:
    other = outputs(expected) if expected is not None else outputs([[1.0]], [[1.0]])
    with pytest.raises(eir.EmitError, match=said):
        compare(outputs(found), other)


@pytest.mark.parametrize("nothing", [Outputs(()), Outputs(((),)), outputs(np.zeros((0, 4))), outputs([INF])])
def test_nothing_to_compare_is_no_agreement(nothing: Outputs) -> None:
    with pytest.raises(
        eir.EmitError, match="ours returns no numbers that could be compared with the graph's"
    ):
        compare(nothing, nothing)


def test_what_agrees() -> None:
    assert compare(outputs([[1.0, -INF, 1e-7]]), outputs([[1.0, -INF, 0.0]])) == pytest.approx(1e-7)
    assert compare(outputs([[1, 2]], [0.5], [True]), outputs([[1, 2]], [0.5], [True])) == 0
    assert compare(outputs([[0.0, 0.0]]), outputs([[0.0, -0.0]])) == 0
    half = outputs([[1.0, 1.01]], dtype="float16")
    assert compare(half, outputs([[1.0, 1.0]], dtype="float16")) > 0.009
    with pytest.raises(eir.EmitError, match="differs"):
        compare(outputs([[1.0, 1.01]]), outputs([[1.0, 1.0]]))


@given(
    values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6),
    place=st.integers(0, 5),
    factor=st.floats(1.01, 10),
)
def test_a_changed_number_at_the_outputs_scale_is_found(
    values: list[float], place: int, factor: float
) -> None:
    """Whatever the scale: the largest number, changed by a percent or more, never passes; the same always does."""
    array = np.array(values, np.float64)
    assert compare(outputs(array, dtype="float64"), outputs(array, dtype="float64")) == 0
    largest = int(np.abs(array).argmax())
    changed = array.copy()
    changed[largest] = array[largest] * factor if abs(array[largest]) > 1e-300 else 1.0
    with pytest.raises(eir.EmitError, match="differs"):
        compare(outputs(changed, dtype="float64"), outputs(array, dtype="float64"))
    changed[place % len(array)] = NAN
    with pytest.raises(eir.EmitError, match="NaN"):
        compare(outputs(changed, dtype="float64"), outputs(array, dtype="float64"))


def test_infinities_that_were_there_before_pass_and_nan_never() -> None:
    refuse_not_finite(outputs([INF, 1.0]), outputs([-INF, 1.0, 2.0]))
    refuse_not_finite(outputs([INF, 1.0]), None)
    with pytest.raises(
        eir.EmitError, match=r"output 0 holds 1 .*, of 2 \(infinite, and before all were finite\)"
    ):
        refuse_not_finite(outputs([INF, 1.0]), outputs([1.0, 2.0, 3.0]))
    with pytest.raises(eir.EmitError, match=r"\(NaN\)"):
        refuse_not_finite(outputs([NAN]), outputs([NAN]))


def test_the_second_input_is_another_of_the_same_kind() -> None:
    tokens, mask, image = torch.tensor([[3, 1, 4]]), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 2, 2)
    (first, _), (second, options) = calls_of(Inputs((tokens, mask), {"image": image, "flag": True}), "cpu")
    assert first[0] is tokens and second[0].tolist() == [[4, 1, 3]] and bool(second[1].all())
    assert options["flag"] is True and 0 <= float(options["image"].min()) < float(options["image"].max()) < 1
    assert another(((), {"flag": True})) is None


class Odd(nn.Module):
    """Outputs of many kinds, in a nest."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"b": (x.bfloat16(), x.argmax(), None), "a": [x > 0, "text"], "c": x.to_sparse()}


def test_outputs_of_every_kind_are_taken_in_order() -> None:
    found = run_module(Odd(), [((torch.tensor([1.0, 2.0]),), {})])
    assert [array.tolist() for array in found.runs[0]] == [[1.0, 2.0], 1, [True, True], [1.0, 2.0]]
    assert found.dtype == "bfloat16" and found.dtypes == ("bfloat16", "int64", "bool", "float32")


def test_a_forward_that_fails_is_told() -> None:
    with pytest.raises(eir.EmitError, match=r"^the network made does not run: TypeError: "):
        run_module(nn.Linear(2, 2), [((), {})])
