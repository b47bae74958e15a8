"""The benchmark of transformers' types: what it takes for a stack, what it calls right, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import transformers

from benchmarks import families, families_small, families_table
from elastic_ir.checkpoints.oracle import comparison


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "started", families._started)


def test_a_stack_is_what_grows_with_a_count() -> None:
    """An encoder and a decoder, each with its entry; nothing else in the configuration makes a list longer."""
    model: Any = families_small.small_model("bart")
    found = families_small.counts(model.config, transformers.BartConfig())
    assert {count.name: count.grown for count in found} == {
        "encoder_layers": {"encoder.layers.": 1}, "decoder_layers": {"decoder.layers.": 1},
    }  # fmt: skip
    assert [(count.default, count.before) for count in found] == [
        (12, {"encoder.layers.": 4}), (12, {"decoder.layers.": 4}),
    ]  # fmt: skip


def test_a_tiny_type_from_its_folder(tmp_path: Path) -> None:
    result = families.examined("gpt2", tmp_path)
    assert result["class"] == "GPT2Model"
    assert result["stacks"] == [
        {
            "list": "h.",
            "count": "n_layer",
            "layers": 4,
            "found": "right",
            "stretch": "right",
            "squeeze": "right",
        }
    ]
    assert families_table.verdict(result["stacks"][0]) == families_table.RIGHT


def test_a_folder_that_comes_out_wrong_is_called_so(tmp_path: Path) -> None:
    """With a count that stays behind, transformers finds layers that it has no place for."""
    with (
        mock.patch("elastic_ir.checkpoints.write.reindexed", lambda config, *_, **__: (config, [])),
        mock.patch("elastic_ir.checkpoints.write.Plan.with_found", lambda plan, found: plan),
    ):
        (stack,) = families.examined("gpt2", tmp_path)["stacks"]
    assert stack["stretch"].startswith(("wrong", "refused")), (
        "the check of the program may be the first to see it"
    )
    assert families_table.verdict(stack) != families_table.RIGHT


def test_a_type_without_a_class_of_its_own_is_told(tmp_path: Path) -> None:
    result = families.examined("edgetam_prompt_encoder", tmp_path)
    assert result == {"type": "edgetam_prompt_encoder", "not_built": "no class has such a configuration"}


@pytest.mark.parametrize(
    ("kinds", "by", "made"),
    [
        (["a", "b", "a", "b"], 1, ["a", "b", "a", "b", "a"]),
        (["a", "b", "b", "b"], 2, ["a", "b", "b", "b", "b", "b"]),
        (["a", "a", "b"], -1, ["a", "a"]),
    ],
)
def test_a_list_of_kinds_goes_on(kinds: list[str], by: int, made: list[str]) -> None:
    assert families_small.longer(kinds, by) == made


@pytest.mark.parametrize(
    ("kinds", "unit"), [("aaaa", 1), ("abab", 2), ("abcabc", 3), ("abbb", 1), ("ababa", 1), ("", 1)]
)
def test_the_unit_that_layers_show(kinds: str, unit: int) -> None:
    assert families.shortest(list(kinds)) == unit


def test_the_table(tmp_path: Path) -> None:
    good = {
        "list": "h.",
        "count": "n_layer",
        "layers": 4,
        "found": "right",
        "stretch": "right",
        "squeeze": "-",
    }
    refused = {
        **good,
        "stretch": "refused: config.json has no entry that counts the 4 layers at h",
        "squeeze": "right",
    }
    results: list[dict[str, Any]] = [
        {"type": "one", "class": "One", "stacks": [good, {**good, "found": "not found"}], "traced": "same"},
        {
            "type": "two",
            "class": "Two",
            "stacks": [refused, {**good, "squeeze": "wrong: 3 layers at h., not 2"}],
        },
        {"type": "three", "not_built": "it needs two configurations"},
    ]
    totals = families_table.write_table(results, tmp_path / "table.md")
    assert totals == (
        "2 of 3 types were built small; they have 4 stacks. Right: 1 (25.0 %); 1 not found, 1 refused, 1 wrong. "
        "Traced: 1 same."
    )
    table = (tmp_path / "table.md").read_text()
    assert "| one | 2 | 1 | 1 not found |" in table
    assert "- 1: refused: config.json has no entry that counts the # layers at h (two)" in table
    assert "- three: it needs two configurations" in table


def test_a_table_is_read_back_for_types_that_are_run_again(tmp_path: Path) -> None:
    right = {"list": "h.", "count": "n_layer", "found": "right", "stretch": "right", "squeeze": "-"}
    results: list[dict[str, Any]] = [
        {
            "type": "one",
            "stacks": [right, {**right, "found": f"{families_table.APART} (3 of 4)"}],
            "traced": "same",
        },
        {"type": "two", "stacks": [{**right, "stretch": "refused: config.json's `a` counts nothing"}, right]},
        {
            "type": "three",
            "stacks": [{**right, "found": families_table.BY_ENTRY}, {**right, "found": "not found"}],
        },
        {"type": "four", "stacks": [{**right, "stretch": families_table.NO_COPY}]},
        {"type": "five", "not_built": "it needs: two configurations"},
    ]
    table = tmp_path / "table.md"
    totals = families_table.write_table(results, table)
    text = table.read_text()
    assert families_table.write_table(families_table.results_in(table), table) == totals
    assert table.read_text() == text
