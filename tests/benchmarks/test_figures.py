"""Figures: pairs, limits, and the tables of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import __main__ as whole
from benchmarks.figures import COLLECTED, Figure, Figures, pairs, shown


def test_pairs_are_taken_in_turn_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def ours() -> float:
        order.append("ours")
        return float(len(order))

    def peer() -> float:
        order.append("peer")
        return 1.0

    found = pairs(ours, peer)
    assert order == ["ours", "peer", *["ours", "peer", "peer", "ours"] * 2, "ours", "peer"]
    assert [first for first, _ in found] == [3, 6, 7, 10, 11]


def test_fewer_than_five_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        pairs(lambda: 1.0, lambda: 1.0, rounds=4)


@pytest.mark.parametrize(
    ("values", "at_least", "held"),
    [
        ((1, 2, 3), False, True),
        ((1, 3, 3), False, False),
        ((1, 3, 3), True, True),
        ((math.nan,), False, False),
    ],
)
def test_the_median_has_to_keep_to_the_limit(values: tuple[float, ...], at_least: bool, held: bool) -> None:
    assert Figure("x", values, 2, at_least).held is held


def test_a_figure_is_printed_and_collected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COLLECTED, str(tmp_path / "all"))
    figures = Figures()
    figures.ratio("a, relative to b", lambda: 3.0, lambda: 2.0, limit=1.2)
    assert capsys.readouterr().out == "a, relative to b: 1.50 (1.50 to 1.50); limit 1.20: MISSED\n"
    assert json.loads((tmp_path / "all").read_text())["values"] == [1.5] * 5
    assert figures.done("torch") == 1
    assert "torch 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.154, "0.154"),
        (0.32, "0.32"),
        (1.016, "1.016"),
        (1.2, "1.20"),
        (8.7, "8.7"),
        (201.4, "201"),
        (5.0, "5"),
    ],
)
def test_numbers_are_shown_as_far_as_they_are_known(value: float, text: str) -> None:
    assert shown(value) == text


def run(at: str, *values: float) -> dict[str, object]:
    figure = {"name": "a | b", "values": list(values), "limit": 2.0, "at_least": False, "unit": ""}
    return {"at": at, "machine": "2 x one", "figures": [{**figure, "name": "a of `b`"}]}


def test_the_table_is_made_from_runs_an_hour_apart() -> None:
    runs = [
        run("2026-01-01T00:00:00+00:00", 9.0),
        run("2026-01-01T01:00:00+00:00", 1.1, 1.3, 1.6),
        run("2026-01-01T02:30:00+00:00", 7.0),
        run("2026-01-01T03:00:00+00:00", 1.2, 1.5, 1.4),
    ]
    assert [figure.values for figure in whole.counted(runs, "a of `b`")] == [
        (1.2, 1.5, 1.4),
        (1.1, 1.3, 1.6),
        (9,),
    ]
    text = whole.written(f"before {whole.BEGIN} old {whole.END} after", runs[1:])
    assert text == (
        f"before {whole.BEGIN}\n\n{whole.HEAD}| a of `b` | 1.35 (1.10 to 1.60) | 2 | 2 |\n\n"
        f"Measured 2026-01-01 on 2 x one.\n\n{whole.END} after"
    )
    assert whole.stated(text) == {"a of `b`": (1.1, 1.6)}


@pytest.mark.parametrize(
    ("values", "at_least", "words"),
    [
        ((1.55,), False, None),
        ((1.7,), False, "not reproduced, the table has 1.10 to 1.60"),
        ((2.1,), False, "beyond its limit"),
        ((2.5,), True, None),
        ((1.0,), True, "beyond its limit"),
    ],
)
def test_what_is_not_reproduced_is_said(values: tuple[float, ...], at_least: bool, words: str | None) -> None:
    said = whole.unlike([Figure("a", values, 2.0, at_least)], {"a": (1.1, 1.6)})
    assert [sentence.startswith(words) for sentence in said] == [True] if words else said == []
    assert "not in the table" in whole.unlike([Figure("b", (1.0,), 2)], {})[0]


def test_the_table_is_that_of_the_runs_kept() -> None:
    table = whole.TABLE.read_text()
    assert table == whole.written(table, json.loads(whole.RUNS.read_text()))
    some = whole.written(table, json.loads(whole.RUNS.read_text()), whole.HEADLINES)
    assert list(whole.stated(some).items()) == [
        row for row in whole.stated(table).items() if row[0] in whole.HEADLINES
    ]


def test_every_program_with_figures_is_run() -> None:
    folder = Path(whole.__file__).parent
    with_figures = {
        path.stem
        for path in folder.glob("[a-z]*.py")
        if "Figures()" in path.read_text() and path.stem != "figures"
    }
    assert with_figures == set(whole.PROGRAMS)
