"""Pipelines: their text, the options' types, what is run, recorded, and said where something is wrong."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import elastic_ir as eir
from elastic_ir.cli.app import describe as describe_error
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import MaskError, PlanError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pass, Pipeline, Squeeze, Stretch
from elastic_ir.passes.infra.spec import PassSpec, make_pass, parse_pipeline
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.zoo import cifar_resnet


@dataclasses.dataclass(frozen=True)
class Options(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "options"

    count: int = 1
    rate: float = 0.5
    hard: bool = False
    word: str = "a"
    indices: Sequence[int] | None = None
    words: tuple[str, ...] = ()

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        raise NotImplementedError


def made(text: str) -> Options:
    (spec,) = parse_pipeline(text)
    item = make_pass(spec, Options)
    assert isinstance(item, Options)
    return item


def test_text() -> None:
    assert parse_pipeline(" stretch { to-depth = 56 order=interpolate } ,compact,a{b c='x, y}'}") == [
        PassSpec("stretch", {"to-depth": "56", "order": "interpolate"}),
        PassSpec("compact"),
        PassSpec("a", {"b": True, "c": "x, y}"}),
    ]


def test_options_by_type() -> None:
    assert made("options") == Options()
    text = "options{count=3 rate=2e-1 hard word='two words' indices=1,3-5 words=a,b}"
    assert made(text) == Options(3, 0.2, True, "two words", [1, 3, 4, 5], ("a", "b"))
    assert made("options{hard=no indices=none}") == Options()


@given(
    st.lists(
        st.builds(
            PassSpec,
            st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
            st.dictionaries(
                st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True),
                st.one_of(
                    st.just(True),
                    st.text(
                        st.characters(codec="ascii", exclude_characters="'\"", exclude_categories=["C"]),
                        min_size=1,
                    ),
                ),
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_text_round_trips(specs: list[PassSpec]) -> None:
    assert parse_pipeline(",".join(map(str, specs))) == specs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the pipeline '' cannot be read at column 1: the name of a pass is expected"),
        ("stretch,", "the pipeline 'stretch,' cannot be read at column 9: the name of a pass is expected"),
        ("stretch{a=1", "the pipeline 'stretch{a=1' cannot be read at column 12: an option or } is expected"),
        ("stretch{a=}", "the pipeline 'stretch{a=}' cannot be read at column 11: a value is expected"),
        (
            "stretch squeeze",
            "the pipeline 'stretch squeeze' cannot be read at column 8: a comma stands between passes",
        ),
        (
            "stretch{a=1 a=2}",
            "the pipeline 'stretch{a=1 a=2}' cannot be read at column 14: stretch is given a twice",
        ),
        ("strech", "there is no pass 'strech'; the passes are"),
        ("stretch{to-dept=3}", "the pass stretch has no option 'to-dept'; its options are to-depth, "),
        ("stretch{to-depth=x}", "stretch: the option to-depth is int, not 'x'"),
        ("stretch{to-depth}", "stretch: the option to-depth needs a value"),
        (
            "stretch{to-depth=23,order=interpolate}",
            "stretch: the option to-depth is int, not '23,order=interpolate'; options stand apart by blanks, so write "
            "a blank before order=",
        ),
        (
            "stretch{order=interpolate,to_depth=23}",
            "stretch: the option order cannot be 'interpolate,to_depth=23'; options stand apart by blanks, so write "
            "a blank before to_depth=",
        ),
        ("stretch{like=model.pt}", "stretch: the option like is given from Python only, not as text"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Pipeline.parse(text)
    assert str(caught.value).startswith(message)


def test_a_pipeline_is_its_passes_one_by_one() -> None:
    graph = eir.trace(cifar_resnet(20))
    before = str(graph)
    pipeline = Pipeline.parse("stretch{to-depth=32 order=interpolate},squeeze{to-stages=4,4,4 drop=even}")
    assert pipeline.passes == (
        Stretch(to_depth=32, order="interpolate"),
        Squeeze(to_stages=[4, 4, 4], drop="even"),
    )
    seen: list[str] = []
    after = pipeline.run(graph, lambda item, _, seconds: seen.append(f"{item.name} {seconds >= 0}"))
    assert seen == ["stretch True", "squeeze True"]
    alone = eir.squeeze(
        eir.stretch(graph, to_depth=32, order="interpolate"), to_stages=(4, 4, 4), drop="even"
    )
    assert str(after) == str(alone)
    assert after.lineage() == alone.lineage()
    assert str(graph) == before  # the one given stays as it was
    assert after.history.pipeline == (
        "stretch{to-depth=32 order=interpolate}",
        "squeeze{to-stages=4,4,4 drop=even}",
    )


def test_the_record_is_written_and_the_bytes_are_the_same_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eir.save(eir.trace(cifar_resnet(20)), tmp_path / "source.pt")
    text = "stretch{to-depth=32}"
    for name in ("one.safetensors", "two.safetensors"):
        result = CliRunner().invoke(
            elastic_ir, ["apply", str(tmp_path / "source.pt"), "--passes", text, "-o", str(tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert eir.load(tmp_path / "one.safetensors").history.pipeline == (text,)


def test_the_command(tmp_path: Path) -> None:
    eir.save(eir.trace(cifar_resnet(14)), tmp_path / "m.pt")
    command = ["apply", str(tmp_path / "m.pt"), "--passes", "stretch{to-depth=20}"]
    result = CliRunner().invoke(elastic_ir, [*command, "--print-after", "stretch", "--time-passes"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "after stretch:" in lines and "graph CifarResNet" in lines
    assert "depth:      14 -> 20" in lines
    assert (tmp_path / "m-applied.pt").exists()
    dry = CliRunner().invoke(elastic_ir, [*command, "-o", str(tmp_path / "no.pt"), "--dry-run"])
    assert dry.exit_code == 0 and not (tmp_path / "no.pt").exists()
    wrong = CliRunner().invoke(elastic_ir, [*command, "--print-after", "compact"])
    assert wrong.exit_code == 2 and "the pipeline has no such pass" in wrong.output


@pytest.mark.slow
def test_costs_before_and_after(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(14).eval()
    masks = {}
    for name, parameter in model.named_parameters():
        if ".conv1." in name:  # half of the filters, and what their batch norms make of them is below zero
            masks[name] = torch.ones_like(parameter)
            masks[name][: len(parameter) // 2] = 0
            with torch.no_grad():
                model.get_parameter(name.replace("conv1.weight", "bn1.bias"))[: len(parameter) // 2] = -0.1
    eir.save(eir.trace(model, masks=masks), tmp_path / "m.pt")
    result = CliRunner().invoke(
        elastic_ir,
        [
            "apply",
            str(tmp_path / "m.pt"),
            "--passes",
            "compact",
            "--measure",
            "-o",
            str(tmp_path / "small.onnx"),
        ],
    )
    assert result.exit_code == 0, result.output
    lines = dict(line.split(":", 1) for line in result.output.splitlines() if ":" in line)
    for key in ("parameters", "FLOPs"):
        before, after = (int(text.replace(",", "")) for text in lines[key].split("->"))
        assert 0.4 * before < after < 0.6 * before
    assert " ms in onnxruntime, " in lines["latency"]
    assert lines["sparsity"].split() == ["21.2", "%", "->", "0.0", "%"]


class Odd(PlanError):
    """An error whose constructor takes more than a text."""

    def __init__(self, text: str, place: int) -> None:
        super().__init__(text)
        self.place = place


@dataclasses.dataclass(frozen=True)
class Failing(Pass):
    """A pass that raises what it is given."""

    name: ClassVar[str] = "failing"

    error: Exception = dataclasses.field(default_factory=lambda: PlanError("no"))

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        raise self.error


def test_what_a_pass_raises_names_it() -> None:
    graph = eir.trace(cifar_resnet(14, width=2))
    for first in (MaskError("of 'a': no mask"), VerifyError("no weight")):
        with pytest.raises(type(first)) as caught:
            Pipeline([Stretch(to_depth=20), Failing(first)]).run(graph)
        assert str(caught.value) == f"pass 'failing': {first}" and caught.value.__cause__ is first
    with pytest.raises(PlanError, match=r"^pass 'squeeze': ") as refused:
        Pipeline([Stretch(to_depth=20), Squeeze(to_depth=26)]).run(graph)
    assert str(refused.value).count("squeeze': ") == 1
    for other in (Odd("at odds", 3), KeyError("nope"), OSError(2, "No such file", "a.npz")):
        with pytest.raises(type(other)) as kept:
            Pipeline([Failing(other)]).run(graph)
        assert kept.value is other
        assert describe_error(other).startswith("pass 'failing': ")
        assert describe_error(other).count("failing") == 1
    assert describe_error(KeyError("x")).startswith("unexpected KeyError: ")


MINE = """
import dataclasses
from typing import ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class DropLast(Pass):
    \"\"\"Delete the last free unit of every stage.\"\"\"

    name: ClassVar[str] = "drop-last"
    units: int = 1  #: how many

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for stage in graph.stages:
            for unit in stage.units[-self.units :]:
                rewriter.delete_unit(unit)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("elastic_ir.passes._loaded", {})
    eir.save(eir.trace(cifar_resnet(20)), tmp_path / "m.pt")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(elastic_ir, [str(argument) for argument in arguments])
    return result.output if result.exit_code == 0 else f"{result.exit_code}: {result.output}"


def test_a_pass_of_a_file(own: Path) -> None:
    told = run(
        "apply",
        own / "m.pt",
        "--load-pass",
        own / "mine.py",
        "--passes",
        "drop-last{units=1}",
        "-o",
        own / "o.pt",
    )
    assert "depth:      20 -> 14" in told.splitlines()
    assert eir.load(own / "o.pt").history.pipeline == ("drop-last",)
    listed = run("passes", "--load-pass", own / "mine.py", "drop-last")
    assert listed.splitlines()[0] == "drop-last: Delete the last free unit of every stage."
    assert "units" in listed


def test_an_unexpected_error_names_the_pass_and_keeps_its_traceback(own: Path) -> None:
    (own / "mine.py").write_text(
        MINE.replace("for stage in graph.stages:", "for stage in graph.weights['nope']:")
    )
    command = [
        "apply",
        own / "m.pt",
        "--load-pass",
        own / "mine.py",
        "--passes",
        "stretch{to-depth=26},drop-last",
    ]
    told = run(*command)
    assert told.startswith("1: error: pass 'drop-last': unexpected KeyError: 'nope' (run again with --debug")
    result = CliRunner().invoke(elastic_ir, [*map(str, command), "--debug"])
    assert isinstance(result.exception, KeyError) and result.exc_info is not None
    text = "".join(traceback.format_exception(result.exception))
    assert "mine.py" in text and "in pass 'drop-last'" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "defines no pass; a pass is a frozen dataclass derived from Pass, with a name"),
        ("x = 1\ny = 1 / 0\n", "bad.py line 2 failed: ZeroDivisionError: division by zero"),
        ("x = (\n", "bad.py line 1 failed: SyntaxError"),
        (
            MINE.replace("drop-last", "stretch"),
            "two passes are named 'stretch': elastic_ir.passes.depth.stretch and bad.py",
        ),
    ],
)
def test_a_file_without_a_good_pass(own: Path, content: str, message: str) -> None:
    (own / "bad.py").write_text(content)
    told = run("passes", "--load-pass", own / "bad.py")
    assert told.startswith("1: error: ") and message in told and told.count("\n") == 1


def test_an_installed_plug_in_does_not_take_the_name_of_a_built_in_pass(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "plug_in.py").write_text(MINE.replace("drop-last", "squeeze"))
    monkeypatch.syspath_prepend(own)
    point = EntryPoint("harmless", "plug_in:DropLast", "elastic_ir.passes")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    told = run("apply", own / "m.pt", "--passes", "squeeze{to_depth=14}", "-o", own / "o.pt")
    sys.modules.pop("plug_in")
    assert (
        told
        == "1: error: two passes are named 'squeeze': elastic_ir.passes.depth.squeeze and plug_in:DropLast\n"
    )
    assert not (own / "o.pt").exists()


RECIPE = """\
version: 1
description: as deep as a ResNet-32
passes:
  - stretch:
      to-depth: 32
      order: interpolate
  - squeeze: {to-stages: [4, 4, 4], drop: even}
"""


def test_a_recipe_is_its_pipeline(own: Path) -> None:
    (own / "r.yaml").write_text(RECIPE)
    told = run("apply", own / "m.pt", "--recipe", own / "r.yaml", "-o", own / "one.pt")
    assert "depth:      20 -> 26" in told.splitlines()
    text = "stretch{to-depth=32 order=interpolate},squeeze{to-stages=4,4,4 drop=even}"
    run("apply", own / "m.pt", "--passes", text, "-o", own / "two.pt")
    assert ",".join(eir.load(own / "one.pt").history.pipeline) == text
    assert str(eir.load(own / "one.pt")) == str(eir.load(own / "two.pt"))


def test_one_of_text_and_recipe(own: Path) -> None:
    (own / "r.yaml").write_text(RECIPE)
    both = run("apply", own / "m.pt", "--recipe", own / "r.yaml", "--passes", "compact")
    assert both.startswith("2: ") and "--passes and --recipe: both are given; give one" in both
    assert "state what to run by --passes or by --recipe" in run("apply", own / "m.pt")
    told = run("apply", "--help").split("A recipe is", 1)[1]
    (own / "help.yaml").write_text("\n".join(told.splitlines()[1:3]))  # the example of the help is one
    assert "sparsity:" in run("apply", own / "m.pt", "--recipe", own / "help.yaml", "--dry-run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version: 1", "version: 2"), "r.yaml line 1: version 2 is not read by this ElasticIR; it reads 1"),
        (("version: 1\n", ""), "r.yaml line 1: the version is missing; write version: 1"),
        (
            ("passes:", "steps:"),
            "r.yaml line 3: 'steps' is not a key of a recipe; its keys are description, passes, version",
        ),
        (("to-depth", "to-dept"), "r.yaml line 5: the pass stretch has no option 'to-dept'"),
        (
            ("32\n      order", "x\n      order"),
            "r.yaml line 5: stretch: the option to-depth is int, not 'x'",
        ),
        (("- squeeze", "- squeese"), "r.yaml line 7: there is no pass 'squeese'"),
        (
            ("      to-depth", "    to-depth"),
            "r.yaml line 6: not valid YAML (mapping values are not allowed here)",
        ),
        (
            ("      to-depth: 32\n      order", "    order"),
            "r.yaml line 4: a pass is one name, with its options below it",
        ),
        (("[4, 4, 4]", "[4, 4"), "r.yaml line"),
        (("passes:", '"passes:'), "r.yaml line 8: not valid YAML (found the end of stream)"),
        (("order: interpolate", "to-depth: 1"), "r.yaml line 6: 'to-depth' occurs twice"),
    ],
)
def test_a_recipe_says_the_line(own: Path, change: tuple[str, str], message: str) -> None:
    (own / "r.yaml").write_text(RECIPE.replace(*change))
    told = run("apply", own / "m.pt", "--recipe", own / "r.yaml")
    assert told.startswith(f"1: error: {message}") and told.count("\n") == 1


@dataclasses.dataclass(frozen=True)
class Late(Pass):
    """A pass that lets the first layer read the last one's result, through its rewriter or behind its back."""

    name: ClassVar[str] = "late"

    hidden: bool = False

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        source, first, last = graph.nodes[0].output, graph.nodes[1], graph.nodes[-2]
        if self.hidden:
            first.args = (last.output,)
        else:
            rewriter.rewire(first, source, last.output)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_graph_that_is_wrong_is_the_fault_of_the_pass_that_left_it_so(hidden: bool) -> None:
    graph = eir.trace(cifar_resnet(20), (torch.zeros(1, 3, 8, 8),))
    late = r"^after pass 'late': node %conv1 .* reads %\w+, which runs later"
    with pytest.raises(VerifyError, match=late):
        Late(hidden).run(graph)
    with pytest.raises(VerifyError, match=late):
        Pipeline([Late(hidden), Stretch(to_depth=26)]).run(graph)


def test_of_our_own_passes_the_edits_are_verified_and_the_whole_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Late, "__module__", "elastic_ir.passes.late")
    graph = eir.trace(cifar_resnet(20), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(VerifyError, match=r"^after pass 'late': node %conv1"):
        Pipeline([Late(), Stretch(to_depth=26)]).run(graph)
    hidden = Pipeline([Stretch(to_depth=26), Late(hidden=True)])
    with pytest.raises(
        VerifyError, match=r"^after the pipeline: node %conv1 .* --verify-each .* names the pass"
    ):
        hidden.run(graph)
    with pytest.raises(VerifyError, match=r"^after pass 'late': node %conv1"):
        hidden.run(graph, verify_each=True)
    with pytest.raises(VerifyError, match=r"^after pass 'late': node %conv1"):
        Pipeline([Late(hidden=True)]).run(graph)
