"""The published schema of studies: it is that of the reader, admits all studies at hand, and refuses slips."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from elastic_ir.errors import PlanError
from elastic_ir.training.studies.schema import PATH, as_text, study_schema
from elastic_ir.training.studies.study_file import read_study
from tests.cli.test_cli import good

jsonschema: Any = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[3]
STUDY: dict[str, Any] = {
    "data": "digits",
    "networks": {"two": {"factory": "tests.training.nets:Perceptron"}},
    "training": {"steps": 12},
    "sparsities": 0.5,
    "seeds": [0],
    "compare": {"method": "imp"},
}


def admitted(study: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(study_schema()).is_valid(study))


def test_the_published_one_is_up_to_date() -> None:
    assert PATH.read_text("utf-8") == as_text(), "run python -m elastic_ir.training.studies.schema"
    jsonschema.Draft202012Validator.check_schema(study_schema())
    assert json.loads(good("lottery", "schema")) == study_schema()


def test_studies_of_the_repository_are_admitted() -> None:
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "studies").glob("*.yaml"))]
    for page in sorted((ROOT / "docs").rglob("*.md")):
        texts += re.findall(r"^```yaml\n(name: .*?)^```", page.read_text("utf-8"), re.M | re.S)
    studies = [yaml.safe_load(text) for text in texts]
    assert len(studies) > 5
    for study in studies:
        jsonschema.validate(study, study_schema())


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [-1]},
        {"seeds": []},
        {"sparsities": [50]},
        {"sparsities": 1.0},
        {"dense_at_least": 88},
        {"colour": "red"},
        {"data": {"name": "digits", "limit": -5}},
        {"data": {"channels": 3}},
        {"networks": {"two": {"depth": 20}}},
        {"networks": {"two": {"factory": "nets.Perceptron"}}},
        {"training": {}},
        {"training": {"steps": 0}},
        {"training": {"steps": 9, "schedule": "linear"}},
        {"training": {"steps": 9, "precision": "bf16-true"}},
        {"training": {"steps": 9, "label_smoothing": 2}},
        {"pruning": {"share": 1}},
        {"pruning": {"rewind": "late"}},
        {"compare": [{"method": "magic"}]},
        {"compare": [{"method": "imp", "tweaks": ["luck"]}]},
        {"compare": [{"method": "imp", "options": {"order": "append"}}]},
        {"compare": {"method": "transform", "options": {"order": "up"}}},
        {"compare": [{"method": "transform", "options": {"drop": []}}]},
        {"compare": [{"method": "transform", "options": {"permute_copies": "yes"}}]},
        {"compare": [{"method": "hybrid", "options": {"replicate": [-1]}}]},
        {"compare": [{"method": "rigl", "options": {"interval": 0}}]},
        {"compare": [{"method": "rigl", "options": {"distribution": "er"}}]},
        {"compare": [{"method": "dpf", "options": {"end": 1.5}}]},
        {"claims": [{"text": "x", "better": "imp", "than": "imp", "measure": "luck"}]},
    ],
)
def test_both_refuse_what_is_out_of_bounds(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    read_study(path)
    assert admitted(STUDY)
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    with pytest.raises(PlanError, match=r"study\.yaml line \d+: "):
        read_study(path)
    assert not admitted({**STUDY, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": None, "title": 5, "pruning": {"share": 0.5}},
        {"compare": [{"method": "transform", "options": {"drop": [1, 2]}, "targets": "two"}]},
        {"compare": [{"method": "rigl", "options": {"drop_fraction": 1, "end": 0.5, "distribution": "erk"}}]},
        {"compare": [{"method": "dense", "sparsities": 0, "tweaks": "soft-labels", "connect": True}]},
    ],
)
def test_both_admit_what_is_in_bounds(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    read_study(path)
    assert admitted({**STUDY, **changes})
