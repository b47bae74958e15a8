"""JSON from files: what cannot be copied or written again is refused where it is read."""

from __future__ import annotations

import json

import pytest

from elastic_ir.errors import SourceError
from elastic_ir.formats.json_file import parse_json
from elastic_ir.safety.limits import JSON_LEVELS


@pytest.mark.parametrize("levels", [1, 5, JSON_LEVELS])
def test_what_is_nested_as_people_nest_it(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        assert parse_json(text) == json.loads(text)
    assert parse_json("3") == 3


@pytest.mark.parametrize("levels", [JSON_LEVELS + 1, 900, 100_000])
def test_what_is_nested_too_deeply(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


def test_halves_of_characters() -> None:
    assert parse_json('{"\\ud83d\\ude00": "\\u00e4"}') == {"\U0001f600": "ä"}
    for text in ('{"\\ud800": 1}', '["\\uDFFF"]', b'["\xed\xa0\x80"]', '["\ud800"]'):
        with pytest.raises(ValueError, match="half a character"):
            parse_json(text)


def test_an_error_is_no_longer_than_anybody_reads() -> None:
    assert str(SourceError("a b " * 5000)).endswith("a b ") and len(str(SourceError("a b " * 5000))) < 1600
