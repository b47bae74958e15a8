"""The record beside a checkpoint: what it keeps, and what is said of a damaged one."""

import json
import re
from pathlib import Path

import pytest

from elastic_ir.checkpoints.record import Origin, Step, read_record, record_text
from elastic_ir.errors import SourceError

STEP = Step(
    "1.0",
    ("a", "b"),
    {"model.layers": "0-3,2"},
    {"x.4": Origin("x.2"), "x.5": Origin("x.5", 1), "x.6": Origin("x.6", scale=0.0), "x.7": Origin("x.7")},
)


def test_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "elastic_ir.json").write_text(record_text([STEP]))
    (step,) = read_record(tmp_path)
    assert (step.version, step.sources, step.plan) == ("1.0", ("a", "b"), {"model.layers": "0-3,2"})
    assert {name: step.origin(name) for name in (*STEP.lineage, "y")} == {**STEP.lineage, "y": Origin("y")}
    assert "x.7" not in step.lineage  # what is as it was takes no room


def test_none_is_no_step(tmp_path: Path) -> None:
    assert read_record(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is damaged: "),
        ("[]", "it holds no history"),
        ('{"version": 3}', "was written by a later ElasticIR (version 3)"),
        ('{"version": 1, "history": [1]}', "it is not a step of a record"),
        (
            '{"version": 1, "history": [{"elastic_ir": "1", "sources": [], "plan": {}, "lineage": {}}]}',
            "refers to",
        ),
        ("[" * 100_000, "is damaged: "),
    ],
)
def test_damage(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "elastic_ir.json").write_text(text)
    with pytest.raises(SourceError, match=re.escape(told)):
        read_record(tmp_path)


@pytest.mark.parametrize("origin", [3, None, {}, {"name": "x", "source": -1}, {"name": "x", "scale": "no"}])
def test_what_is_no_origin(tmp_path: Path, origin: object) -> None:
    data = json.loads(record_text([STEP]))
    data["history"][0]["lineage"]["x.4"] = origin
    (tmp_path / "elastic_ir.json").write_text(json.dumps(data))
    with pytest.raises(SourceError, match="is not the origin of a tensor"):
        read_record(tmp_path)
