"""What is wrong in a study is told when its file is read, not after the search has been paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from elastic_ir.cli.app import elastic_ir as program
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.training.reports.report import collect, markdown
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import Study
from elastic_ir.training.studies.study_file import read_study

STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": "digits",
    "networks": {name: {"factory": "tests.training.nets:Perceptron"} for name in ("two", "three")},
    "training": {"steps": 12},
    "pruning": {"rewind": 2, "share": 0.5},
    "sparsities": [0.5],
    "seeds": [0],
    "compare": [{"method": "imp"}],
}


def study(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return read_study(path)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("transform", {"order": "zzz"}, ".options.order: 'zzz' is not append or interpolate"),
        ("hybrid", {"order": ["append"]}, r".options.order: \['append'\] is not append or interpolate"),
        (
            "transform",
            {"drop": "nonsense"},
            ".options.drop: 'nonsense' is not tail, even or a list of blocks",
        ),
        (
            "transform",
            {"drop": [1, "2"]},
            r".options.drop: \[1, '2'\] is not .* a list of blocks such as \[1, 2\], ",
        ),
        ("hybrid", {"drop": []}, r".options.drop: \[\] is not tail, even or a list of blocks"),
        ("transform", {"replicate": 1}, r".options.replicate: 1 is not a list of blocks such as \[1, 2\], "),
        ("transform", {"replicate": [-1]}, r".options.replicate: \[-1\] is not a list of blocks"),
        ("transform", {"replicate": [True]}, r".options.replicate: \[True\] is not a list of blocks"),
        ("transform", {"permute_copies": "yes"}, ".options.permute_copies: 'yes' is not true or false"),
        (
            "hybrid",
            {"permute_copies": True},
            ": hybrid has no option 'permute_copies'; its options are order,",
        ),
        (
            "rigl",
            {"distribution": "foo"},
            ".options.distribution: 'foo' is not uniform, erdos-renyi or erk",
        ),
        ("rigl", {"distribution": ["erk"]}, r".options.distribution: \['erk'\] is not uniform"),
        ("rigl", {"interval": "x"}, ".options.interval: 'x' is not a whole number of at least 1"),
        ("rigl", {"interval": True}, ".options.interval: True is not a whole number"),
        ("rigl", {"interval": 0}, ".options.interval: 0 is not a whole number of at least 1"),
        (
            "rigl",
            {"drop_fraction": 30},
            ".options.drop_fraction: 30 is not a share from 0 to 1; write 0.3 for 30 %",
        ),
        ("rigl", {"end": float("nan")}, ".options.end: nan is not a share from 0 to 1"),
        ("rigl", {"end": None}, ".options.end: None is not a share from 0 to 1"),
        ("dpf", {"interval": 2.5}, r".options.interval: 2\.5 is not a whole number"),
        ("dpf", {"start": 0.8}, r": dpf: the ramp ends at 0\.5, before it starts at 0\.8"),
        ("dpf", {"initial": 0.7}, r": dpf: the initial sparsity 0\.7 is above the final one, 0\.5"),
    ],
)
def test_values_of_options_are_looked_at(
    tmp_path: Path, method: str, options: dict[str, Any], message: str
) -> None:
    compare = [{"method": "imp"}, {"method": method, "options": options}]
    with pytest.raises(PlanError, match=rf"study\.yaml line \d+: compare\[1\]{message}") as caught:
        study(tmp_path, compare=compare)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (5, "  steps: many", r"training\.steps: 'many' is not a whole number"),
        (6, "  learning_rate: 1", "training: there is no entry 'learning_rate'; the entries are steps, batch_size"),
        (8, "seeds: [0, yes]", r"seeds\[1\]: True is not a whole number"),
        (11, "  - {method: transform, options: {order: up}}", r"compare\[1\]\.options\.order: .up. is not append"),
        (13, "    sparsities: 0.5", r"compare\[2\]: the dense network has a sparsity of 0, not 0\.5"),
        (14, "colour: red", "there is no entry 'colour'"),
    ],
)  # fmt: skip
def test_the_line_of_what_is_wrong_is_named(tmp_path: Path, line: int, text: str, message: str) -> None:
    lines = [
        "data: digits", "networks:", "  two: {factory: 'tests.training.nets:Perceptron'}", "training:", "  steps: 12",
        "  lr: 0.1", "sparsities: [0.5]", "seeds: [0]", "compare:", "  - method: imp", "  - method: snip",
        "  - method: dense", "    label: whole", "title: t",
    ]  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(lines))
    assert read_study(path).title == "t"
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(PlanError, match=rf"study\.yaml line {line}: {message}"):
        read_study(path)


def test_a_tag_that_would_make_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("data: digits\ntitle: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(
        SourceError, match=r"study\.yaml line 2: not valid YAML \(could not determine a constructor"
    ):
        read_study(path)


def test_values_that_methods_take_are_taken(tmp_path: Path) -> None:
    entries = [
        ("transform", {"order": "interpolate", "replicate": [1], "permute_copies": True}),
        ("transform", {"drop": [1, 2]}),
        ("hybrid", {"drop": "even"}),
        ("rigl", {"distribution": "uniform", "interval": 3, "drop_fraction": 1, "end": 0.5}),
        ("dpf", {"interval": 4, "initial": 0.2, "start": 0.1, "end": 1.0}),
    ]
    found = study(tmp_path, compare=[{"method": method, "options": options} for method, options in entries])
    assert [(entry.method, entry.options) for entry in found.compare] == entries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_at_least": 88}, r"dense_at_least: 88 is not a share from 0 to 1; write 0\.88 for 88 %"),
        ({"dense_at_least": -0.1}, r"dense_at_least: -0\.1 is not a share from 0 to 1$"),
        ({"dense_at_least": float("nan")}, "dense_at_least: nan is not a share from 0 to 1"),
        ({"dense_at_least": "high"}, "dense_at_least: .high. is not a share"),
        ({"data": {"name": "digits", "limit": -5}}, r"data\.limit: -5 is not a whole number of at least 0"),
        ({"seeds": []}, "seeds: none is given; at least one is wanted"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is given twice"),
        ({"sparsities": []}, "sparsities: none is given"),
        ({"sparsities": [-0.1, 0.5]}, r"sparsities\[0\]: -0\.1 is not a share from 0 to below 1"),
        ({"sparsities": [0.5, 1.0]}, r"sparsities\[1\]: 1 is not a share from 0 to below 1"),
        ({"sparsities": [float("nan")]}, r"sparsities\[0\]: nan is not a share from 0 to below 1"),
        (
            {"compare": [{"method": "imp", "sparsities": [50]}]},
            r"compare\[0\]\.sparsities\[0\]: 50 is not a share .*; write 0\.5 for 50 %",
        ),
    ],
)  # fmt: skip
def test_shares_and_seeds_are_looked_at(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=rf"study\.yaml line \d+: {message}"):
        study(tmp_path, **changes)


@pytest.mark.parametrize("method", ["rigl", "dpf"])
def test_a_line_has_one_ticket_at_its_ends(tmp_path: Path, method: str) -> None:
    message = rf"compare\[0\]: connect measures the line .* the masks of {method} move"
    with pytest.raises(PlanError, match=message):
        study(tmp_path, compare=[{"method": method, "connect": True}])


@pytest.mark.parametrize(
    ("sparsity", "share", "message"),
    [
        (0.8, 0.2, r"a sparsity of 80 % is not met by any level: pruning a share of 0.2 gives 79.0 % at level 7 and "
                   "83.2 % at level 8; level 8 is used; share: 0.2054 would meet it"),
        (0.1, 0.5, r"a sparsity of 10 % is not met by any level: pruning a share of 0.5 gives 0.0 % at level 0 and "
                   "50.0 % at level 1; level 1 is used; share: 0.1 would meet it"),
    ],
)  # fmt: skip
def test_a_sparsity_that_no_level_meets_is_told(
    tmp_path: Path, sparsity: float, share: float, message: str
) -> None:
    changes: dict[str, Any] = {"sparsities": [sparsity, share], "pruning": {"share": share}}
    found = study(tmp_path, **changes)
    assert found.notes == (message,)
    assert f"**A{message[1:]}.**" in markdown(collect(found, Store(tmp_path / "store")))
    (tmp_path / "store").mkdir()
    for command in (["run", "--dry-run"], ["status"], ["report", "--no-plots"]):
        said = CliRunner().invoke(
            program, ["lottery", *command, str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
        )
        assert said.exit_code == 0 and said.stderr == f"note: tiny: {message}\n", said.output
    better = float(message.partition("share: ")[2].partition(" ")[0])
    assert study(tmp_path, sparsities=[sparsity], pruning={"share": better}).notes == ()
    assert study(tmp_path, **{**changes, "sparsities": [share]}).notes == ()
    entry = {"method": "imp", "label": "own", "connect": True, "sparsities": [sparsity]}
    assert study(tmp_path, **{**changes, "sparsities": [share], "compare": [entry]}).notes == (message,)


#: "random" is run on one network at one of two sparsities, "snip" on the other at both.
PARTLY = {
    "sparsities": [0.5, 0.75],
    "compare": [
        {"method": "imp"},
        {"method": "random", "targets": "two", "sparsities": 0.5},
        {"method": "snip", "targets": "three"},
    ],
}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            {"than": "random", "targets": "two", "sparsities": [0.5, 0.75]},
            r"on two at 75\.0 %: 'imp' is run at 0\.0, 50\.0, 75\.0 % on two, 'random' is run at 50\.0 % on two",
        ),
        (
            {"than": "random", "targets": "two", "sparsities": 0.875},  # neither
            r"on two at 87\.5 %: 'imp' is run at",
        ),
        (
            {"than": "random", "targets": ["two", "three"]},
            r"on three: 'imp' is run at 0\.0, 50\.0, 75\.0 % on three, 'random' is not run$",
        ),
        ({"than": "random", "sparsities": 0.75}, r"on any network at 75\.0 %: 'imp' is run .* two and at .* three"),
        (
            {"better": "snip", "than": "random"},
            r"on any network: 'snip' is run at 50\.0, 75\.0 % on three, 'random' is run at 50\.0 % on two",
        ),
    ],
)  # fmt: skip
def test_a_claim_that_no_run_can_answer_is_refused(
    tmp_path: Path, claim: dict[str, Any], message: str
) -> None:
    good = {"text": "x", "better": "imp", "than": "snip"}
    with pytest.raises(PlanError, match=rf"claims\[1\]: no runs answer it {message}"):
        study(tmp_path, **PARTLY, claims=[good, {"text": "x", "better": "imp", **claim}])


@pytest.mark.parametrize(
    "claim",
    [
        {"than": "random"},  # on two alone, as nothing is named
        {"than": "random", "targets": "two", "sparsities": 0.499},  # the level that meets it
        {"than": "snip", "sparsities": [0.5, 0.75]},
    ],
)
def test_networks_that_a_claim_does_not_name_may_have_one_side_only(
    tmp_path: Path, claim: dict[str, Any]
) -> None:
    found = study(tmp_path, **PARTLY, claims=[{"text": "x", "better": "imp", **claim}])
    assert len(found.claims) == 1


def test_a_claim_s_sparsity_is_a_share(tmp_path: Path) -> None:
    claim = {"text": "x", "better": "imp", "than": "imp", "sparsities": 90}
    with pytest.raises(
        PlanError, match=r"claims\[0\]\.sparsities: 90 is not a share .*; write 0\.9 for 90 %"
    ):
        study(tmp_path, claims=[claim])
