"""A dry run tries the transformations of a study: what they make, and what a run would end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from elastic_ir.cli.app import elastic_ir
from elastic_ir.training.studies.names import check_names
from elastic_ir.training.studies.study_file import read_study
from elastic_ir.training.studies.transforms import try_transforms

NETS = "tests.training.nets:Perceptron"
STUDY: dict[str, Any] = {
    "data": "digits",
    "networks": {name: {"factory": NETS, "blocks": count} for name, count in (("two", 2), ("four", 4))},
    "training": {"steps": 12},
    "pruning": {"share": 0.5},
    "sparsities": [0.5],
    "seeds": [0],
    "compare": [{"method": "imp"}, {"method": "transform", "label": "from {source}"}],
}


def planned(folder: Path, *options: str, **changes: Any) -> Result:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    arguments = ["lottery", "run", str(path), "--dry-run", "--store", str(folder / "store"), *options]
    return CliRunner().invoke(elastic_ir, arguments)


def test_depths_are_shown(tmp_path: Path) -> None:
    told = planned(tmp_path)
    assert told.exit_code == 0, told.output
    assert "two      from four  4 -> 2  10 -> 6\n" in told.output
    assert "four     from two   2 -> 4  6 -> 10\n" in told.output
    found = json.loads(planned(tmp_path, "--json").output)["transforms"]
    assert found[1] == {
        "network": "four", "label": "from two", "source": "two", "blocks": [[2], [4]], "depths": [6, 10], "error": "",
    }  # fmt: skip
    assert not (tmp_path / "store").exists()


def test_networks_need_no_values(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    study = read_study(path)
    networks = check_names(study)
    assert all(tensor.is_meta for network in networks.values() for tensor in network.parameters())
    assert [(one.network, one.source, one.error) for one in try_transforms(study, networks)] == [
        ("two", "four", ""),
        ("four", "two", ""),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compare": [{"method": "transform", "options": {"replicate": [7]}, "targets": "four"}]},
            "four, transform from two, replicate [7]: replicate: stage 'blocks' has no block 7: its blocks are 0 to 1",
        ),
        (
            {"networks": {"two": {"factory": NETS}, "wide": {"factory": NETS, "blocks": 3, "width": 8}}},
            "wide, from two: the transformed ticket does not fit wide: stem.weight is [16, 64], and [8, 64] there",
        ),
        (
            {"networks": {"two": {"factory": NETS}, "vgg": {"factory": "elastic_ir.zoo:cifar_vgg", "depth": 13}}},
            "vgg, from two: CifarVGG could not be traced",
        ),
        (
            {"compare": [{"method": "imp", "tweaks": ["ghost-skips"], "label": "skips"}]},
            "two, skips: pass 'ghost-skips': no convolution of Perceptron keeps its input's shape",
        ),
    ],
)  # fmt: skip
def test_what_a_run_would_end_with_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    told = planned(tmp_path, **changes)
    assert told.exit_code == 1 and "would fail: " in told.output and message in told.output, told.output
    assert "nothing was done" in told.output
