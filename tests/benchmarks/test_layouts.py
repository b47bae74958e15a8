"""The benchmark of layouts judges networks as it says: two of its own pass through it, and faults are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import layouts
from benchmarks.layout_check import exported, facts_of
from benchmarks.layout_networks import find, networks
from benchmarks.layout_networks.entry import each
from benchmarks.layout_stages import best, expected_stages
from benchmarks.layout_table import report, verdict


@pytest.fixture(scope="module")
def zipped() -> dict[str, object]:
    """The facts of two lists side by side, which all steps but ONNX pass."""
    return facts_of(find("own_zipped"))


def test_a_network_passes_all_steps(zipped: dict[str, object]) -> None:
    steps = ("stages", "change", "native", "names", "names_as_traced", "phase")
    assert [zipped[step] for step in steps] == ["right", "equal", "equal", "right", "equal", "done"]
    assert verdict(find("own_zipped"), zipped) == ("right", "")
    assert not exported("own_zipped")
    assert "onnx" not in zipped


def test_a_stage_that_the_code_does_not_have_is_wrong() -> None:
    names = [f"{layer}.{i}.weight" for layer in ("convs", "norms") for i in range(3)]
    half = replace(find("own_zipped"), stages=(each("convs.{i}", of=3),))
    comparison = best(half, names, expected_stages(find("own_zipped").stages, names))
    assert (comparison.missing, comparison.extra) == (["convs.{i}"], ["convs.{i} + norms.{i}"])
    facts = {"phase": "done", "stages": "wrong", "missing": comparison.missing, "extra": comparison.extra}
    assert verdict(half, facts) == ("wrong", "stages: without `convs.{i}`, with `convs.{i} + norms.{i}`")


def test_another_answer_of_the_table_is_as_good() -> None:
    whole = find("own_zipped")
    names = [f"{layer}.{i}.weight" for layer in ("convs", "norms") for i in range(3)]
    either = replace(whole, or_stages=(each("convs.{i}", of=3),))
    for stated in (either.stages, either.or_stages):
        assert best(either, names, expected_stages(stated, names)).right


def test_a_change_of_what_cannot_change_is_wrong(zipped: dict[str, object]) -> None:
    impossible = replace(find("own_zipped"), refused="its layers count themselves")
    assert verdict(impossible, zipped) == ("wrong", "changed, though its layers count themselves")


@pytest.mark.parametrize(("says", "expected"), [("wider", "right"), ("counts", "refused")])
def test_a_refusal_has_to_name_the_reason(says: str, expected: str) -> None:
    network = replace(find("own_zipped"), refused="each layer is wider", says=says)
    facts = {"phase": "done", "stages": "refused", "message": "each layer is wider than the one before it"}
    assert verdict(network, facts)[0] == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"raised": "ValueError: no", "phase": "build"}, "broken"),
        ({"raised": "ValueError: no", "phase": "stretch"}, "crash"),
        ({"stages": "untraced", "message": "branches on values"}, "untraced"),
        ({"stages": "right", "change": "wrong: squeezed back it is not the source"}, "wrong"),
        ({"stages": "right", "change": "equal", "native": "refused: no"}, "refused"),
    ],
)
def test_what_went_wrong_is_told_apart(facts: dict[str, str], expected: str) -> None:
    assert verdict(find("own_zipped"), facts)[0] == expected


def test_results_come_from_a_process_each_and_are_gone_on_from(tmp_path: Path) -> None:
    results, table = tmp_path / "results.jsonl", tmp_path / "table.md"
    options = ["--only", "own_nothing_repeats", "--results", str(results), "--output", str(table)]
    assert layouts.main(options) == 0
    (line,) = results.read_text().splitlines()
    assert json.loads(line)["stages"] == "refused"
    assert "| `own_nothing_repeats` | own | nothing repeats | right | refused |" in table.read_text()
    assert layouts.main(options) == 0
    assert results.read_text().splitlines() == [line]


def test_the_table_counts_what_it_shows(zipped: dict[str, object]) -> None:
    facts = {**zipped, "name": "own_zipped", "library": "own", "version": "-"}
    text = report(layouts.judged({"own_zipped": facts}), "2.13")
    assert "1 networks: 0 of 0 libraries, and 1 minimal ones" in text
    assert "| sibling lists | 1 | 1 |" in text


def test_every_expected_refusal_has_a_reason_to_look_for() -> None:
    entries = networks()
    assert len(entries) >= 120
    assert len({network.library for network in entries}) > 20
    silent = [n.name for n in entries if (n.refused or n.may_refuse) and not n.says]
    assert silent == []
