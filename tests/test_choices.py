"""Words of which one is chosen: a ``Literal`` says them, tables that are keyed by them have all, messages name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.extents import OPEN, Open
from elastic_ir.analysis.pruning.distributions import DISTRIBUTIONS, Distribution
from elastic_ir.choices import Drop, Order, check_choice, either, words_of
from elastic_ir.errors import PlanError
from elastic_ir.passes import find_pass
from elastic_ir.training.pruning.baselines import METHODS, Baseline
from elastic_ir.training.studies.method_options import OPTIONS
from elastic_ir.training.studies.study import Method


@pytest.mark.parametrize(
    ("table", "kind"), [(OPEN, Open), (DISTRIBUTIONS, Distribution), (METHODS, Baseline)]
)
def test_tables_have_all_the_words(table: Mapping[str, Any], kind: Any) -> None:
    assert tuple(table) == words_of(kind)


def test_options_are_of_methods_that_there_are() -> None:
    assert set(OPTIONS) <= set(words_of(Method))


def test_words_are_read_off_the_type() -> None:
    assert words_of(Drop) == ("tail", "even") and words_of(str | None) == ()
    assert words_of(Literal["", "csv"] | int) == ("csv",)
    with pytest.raises(PlanError, match="log is csv or text, not 'xml'"):
        check_choice("log", "xml", Literal["", "csv", "text"])
    with pytest.raises(PlanError, match="order is append or interpolate, not 'up'"):
        check_choice("order", "up", Order)
    assert either(["one"]) == "one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stretch{order=up}", "stretch: the option order is append or interpolate, not 'up'"),
        ("squeeze{drop=head}", "squeeze: the option drop is tail, even or .*, not 'head'"),
        (
            "rescale-residual{factor=half}",
            "rescale-residual: the option factor is float or euler, not 'half'",
        ),
    ],
)
def test_a_pipeline_names_the_words(text: str, message: str) -> None:
    from elastic_ir.passes import Pipeline

    with pytest.raises(PlanError, match=message):
        Pipeline.parse(text)


def test_the_list_of_passes_has_the_words() -> None:
    rows = {name: typed for name, typed, _ in find_pass("squeeze").options()}
    assert rows["drop"] == "tail|even or numbers (3,4,6 or 0-2)"
    assert {row[0]: row[1] for row in find_pass("rescale-residual").options()} == {
        "factor": "euler or number"
    }


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (eir.trace, {"frontend": "jit"}, "frontend is auto, fx or export, not 'jit'"),
        (eir.stretch, {"order": "up"}, "order is append or interpolate, not 'up'"),
        (eir.squeeze, {"drop": "head"}, "drop is tail, even or a list of blocks, not 'head'"),
    ],
)
def test_python_names_the_words(call: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)))
    given = (model,) if call is eir.trace else (eir.trace(model), 8)
    with pytest.raises((PlanError, ValueError), match=message):
        call(*given, **options)
