"""The command line from the outside: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from elastic_ir import api
from elastic_ir.cli.app import COMMANDS, elastic_ir
from elastic_ir.errors import OutputError, SourceError

ROOT = Path(__file__).parents[2]


def small_resnet(stages: Sequence[int] = (2, 2, 2), seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The state dict of a CIFAR ResNet with 2, 4 and 8 channels, under the usual names."""
    rng = np.random.default_rng(seed)
    state: dict[str, NDArray[np.float32]] = {}

    def conv(name: str, out: int, into: int, size: int = 3) -> None:
        state[f"{name}.weight"] = rng.standard_normal((out, into, size, size), np.float32)

    def norm(name: str, width: int) -> None:
        for role in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{role}"] = rng.random(width, np.float32)

    conv("conv1", 2, 3)
    norm("bn1", 2)
    into = 2
    for number, blocks in enumerate(stages, start=1):
        width = 2**number
        for block in range(blocks):
            path = f"layer{number}.{block}"
            conv(f"{path}.conv1", width, into)
            norm(f"{path}.bn1", width)
            conv(f"{path}.conv2", width, width)
            norm(f"{path}.bn2", width)
            if into != width:
                conv(f"{path}.downsample.0", width, into, 1)
                norm(f"{path}.downsample.1", width)
            into = width
    # "linear", because safetensors sorts by name: an "fc" would seem to come before the first stage.
    state["linear.weight"] = rng.standard_normal((10, into), np.float32)
    state["linear.bias"] = rng.random(10, np.float32)
    return state


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, entered, with ``model.safetensors`` in it."""
    monkeypatch.chdir(tmp_path)
    save_file(small_resnet(), tmp_path / "model.safetensors")
    return tmp_path


def run(*arguments: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(elastic_ir, arguments, prog_name="elastic-ir")


def good(*arguments: str) -> str:
    """Standard output of a command that has to succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*arguments: str, code: int = 1) -> str:
    """Standard error of a command that has to fail, without a traceback."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith("error: ")
    return result.stderr


# -- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_the_commands_say(name: str) -> None:
    command = elastic_ir.load(name)
    assert command.name == name
    assert command.short_help == COMMANDS[name]
    assert command.params or (isinstance(command, click.Group) and command.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    text = good(name, "--help")
    examples = re.findall(rf"^ +elastic-ir {name}\b", text, re.MULTILINE)
    assert len(examples) >= 2
    assert good(name, "-h") == text


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_explained_in_sentences(name: str) -> None:
    command = elastic_ir.load(name)
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help[0].isupper(), option.help
            assert option.help.endswith("."), option.help


def test_help_lists_every_command_whole() -> None:
    text = good("--help")
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", text, re.MULTILINE)
    assert "elastic-ir completion --install" in text


def test_version() -> None:
    from elastic_ir import __version__

    assert good("--version") == f"elastic-ir, version {__version__}\n"


def in_a_process(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "elastic_ir.cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment},
    )  # fmt: skip


def test_help_imports_next_to_nothing() -> None:
    code = "import sys; from elastic_ir.cli.app import elastic_ir; elastic_ir.main(['--help'], standalone_mode=False)"
    unwanted = (
        "torch",
        "numpy",
        "rich",
        "networkx",
        "safetensors",
        "elastic_ir.passes",
        "elastic_ir.cli.options",
    )
    code += f"; assert not set(sys.modules) & set({unwanted!r}), set(sys.modules) & set({unwanted!r})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Commands:" in result.stdout


def test_the_name_main_stays_a_function() -> None:
    """The installed program imports it, also after the rest of the command line has been imported."""
    from elastic_ir.cli import main

    assert callable(main)


# -- completion -----------------------------------------------------------------------------------------------------


def complete(*words: str, incomplete: str = "") -> list[tuple[str, str]]:
    completer = BashComplete(elastic_ir, {}, "elastic-ir", "_ELASTIC_IR_COMPLETE")
    return [(item.type, item.value) for item in completer.get_completions([*words], incomplete)]


def test_completion() -> None:
    assert ("plain", "stretch") in complete(incomplete="s")
    assert ("plain", "inspect") not in complete(incomplete="s")
    assert complete("stretch", "--order") == [("plain", "append"), ("plain", "interpolate")]
    assert complete("squeeze", "--drop") == [("plain", "tail"), ("plain", "even")]
    assert complete("inspect") == [("file", "")]
    assert complete("stretch", "a.pt", "--like", incomplete="m") == [("file", "m")]
    assert ("plain", "--to-depth") in complete("stretch", incomplete="--to")
    assert complete("passes", incomplete="str") == [("plain", "stretch")]


def test_completion_by_the_shell() -> None:
    script = in_a_process(_ELASTIC_IR_COMPLETE="bash_source")
    assert script.returncode == 0
    assert "_ELASTIC_IR_COMPLETE=bash_complete" in script.stdout


# -- inspect --------------------------------------------------------------------------------------------------------


INSPECT = """\
network:    model
source:     model.safetensors
found from: names
depth:      14
parameters: 2,988
sparsity:   0.0 %

stage   blocks  free  layers  depth  parameters
stem         -     -       1    7 %          58
layer1       2     1       4   29 %         160
layer2       2     1       4   29 %         552
layer3       2     1       4   29 %       2,128
head         -     -       1    7 %          90
total        6     3      14  100 %       2,988
"""


def test_inspect(here: Path) -> None:
    assert good("inspect", "model.safetensors") == INSPECT


def test_inspect_as_json(here: Path) -> None:
    found = json.loads(good("inspect", "model.safetensors", "--json"))
    assert list(found) == [
        "name", "source", "form", "frontend", "depth", "parameters", "sparsity", "stem", "head", "note",
        "lists", "left_behind", "stages", "rows",
    ]  # fmt: skip
    assert (found["source"], found["form"], found["depth"]) == ("model.safetensors", "names", 14)
    assert found["frontend"] is None
    assert found["sparsity"] == 0
    assert found["stages"][1] == {
        "name": "layer2", "blocks": 2, "entry": "layer2.0", "transition": None, "free": ["layer2.1"],
        "last": None, "names": ["layer2.{i}"], "kinds": [{"name": "", "blocks": [1]}], "unit": 1,
        "layers": 2, "shape": None, "channels": None, "resolution": None, "tokens": None, "type": None,
        "stage_layers": 4, "depth_share": 4 / 14, "parameters": 552, "sparsity": 0.0,
    }  # fmt: skip
    assert [(row["kind"], row["name"]) for row in found["rows"]] == [
        ("stem", "stem"), ("stage", "layer1"), ("stage", "layer2"), ("stage", "layer3"), ("head", "head"),
    ]  # fmt: skip
    assert list(found["rows"][0]) == [
        "kind", "name", "modules", "type", "layers", "depth_share", "parameters", "sparsity",
    ]  # fmt: skip
    assert found["rows"][0]["modules"] == ["bn1", "conv1"]
    assert sum(row["parameters"] for row in found["rows"]) == found["parameters"]


def test_inspect_where_nothing_repeats(here: Path) -> None:
    save_file({"a.weight": np.ones((4, 3), np.float32)}, here / "plain.safetensors")
    out = good("inspect", "plain.safetensors")
    assert re.search(r"^structure:  \w.+", out, re.MULTILINE)
    assert "parameters: 12\n" in out
    found = json.loads(good("inspect", "plain.safetensors", "--json"))
    assert (found["stages"], found["depth"], found["parameters"]) == ([], None, 12)
    assert found["note"]


def test_masks_are_counted(here: Path) -> None:
    state = small_resnet()
    masks = {name: np.zeros_like(value) for name, value in state.items() if name.startswith("layer1.1.conv")}
    save_file(masks, here / "masks.safetensors")
    found = json.loads(good("inspect", "model.safetensors", "--mask", "masks.safetensors", "--json"))
    prunable = sum(value.size for name, value in state.items() if value.ndim > 1)
    assert found["sparsity"] == pytest.approx(sum(mask.size for mask in masks.values()) / prunable)
    zeroed = {name: value * 0 if name in masks else value for name, value in state.items()}
    save_file(zeroed, here / "zeroed.safetensors")
    assert json.loads(good("inspect", "zeroed.safetensors", "--json"))["sparsity"] == 0
    again = json.loads(good("inspect", "zeroed.safetensors", "--mask-from-zeros", "--json"))
    assert again["sparsity"] == found["sparsity"]


# -- stretch and squeeze --------------------------------------------------------------------------------------------


STRETCH = """\
stage   entry     blocks  plan
layer1  layer1.0  2 -> 3  0,1,1
layer2  layer2.0  2 -> 3  0,1,1
layer3  layer3.0  2 -> 3  0,1,1

depth:      14 -> 20
parameters: 2,988 -> 4,556
sparsity:   0.0 %
"""


def test_stretch_by_depth_goes_beside_the_source(here: Path) -> None:
    out = good("stretch", "model.safetensors", "--to-depth", "20")
    assert out.startswith(STRETCH)
    assert re.search(r"^wrote: {6}model-depth20\.safetensors \(\d+(\.\d)? k?B\)$", out, re.MULTILINE)
    source, target = small_resnet(), load_file(here / "model-depth20.safetensors")
    assert set(target) == set(small_resnet((3, 3, 3)))
    np.testing.assert_array_equal(target["layer2.2.conv1.weight"], source["layer2.1.conv1.weight"])


def test_squeeze_gives_the_source_back(here: Path) -> None:
    good("stretch", "model.safetensors", "--to-depth", "20")
    good("squeeze", "model-depth20.safetensors", "--to-depth", "14", "-o", "back.safetensors")
    found = json.loads(good("diff", "model.safetensors", "back.safetensors", "--json"))
    assert found["same"] is True


def test_the_tag_of_the_source_is_replaced(here: Path) -> None:
    good("stretch", "model.safetensors", "--to-depth", "20")
    good("stretch", "model-depth20.safetensors", "--to-depth", "26")
    assert (here / "model-depth26.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        (["--to-stages", "2,3,2"], (2, 3, 2)),
        (["--to-stages", "layer2=4"], (2, 4, 2)),
        (["--plan", "0,1,1|0,1|0-1"], (3, 2, 2)),
        (["--plan", "0:0;1:1,2,3"], (4, 4, 4)),
        (["--like", "other.safetensors"], (2, 3, 4)),
        (["--to-depth", "20", "--order", "interpolate", "--replicate", "1"], (3, 3, 3)),
    ],
)
def test_ways_to_say_the_target(here: Path, options: list[str], counts: tuple[int, ...]) -> None:
    save_file(small_resnet((2, 3, 4)), here / "other.safetensors")
    good("stretch", "model.safetensors", *options, "-o", "out.safetensors")
    assert set(load_file(here / "out.safetensors")) == set(small_resnet(counts))


@pytest.mark.slow
def test_like_a_named_network_says_what_became_of_constants(here: Path) -> None:
    told = good("stretch", "timm:nf_resnet26", "--like", "timm:nf_resnet50", "-o", "deep.safetensors")
    assert "depth:      26 -> 50" in told.splitlines()
    constants = next(line for line in told.splitlines() if line.startswith("constants:"))
    assert constants == "constants:  beta as the reference has it"
    told = good("stretch", "timm:nf_resnet26", "--to-stages", "3,4,6,3", "-o", "alone.safetensors")
    constants = next(line for line in told.splitlines() if line.startswith("constants:"))
    assert "by the variance since the last entry" in constants
    assert set(load_file(here / "deep.safetensors")) == set(load_file(here / "alone.safetensors"))


@pytest.mark.slow
def test_like_says_which_stage_cannot_be_matched(here: Path) -> None:
    told = bad("stretch", "timm:resnet18", "--like", "timm:resnet50")
    assert told.count("\n") == 1 and "layer1" in told


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--to-stages", "3,3,3"], (0, 1, 2)),
        (["--to-stages", "3,3,3", "--drop", "even"], (0, 1, 3)),
        (["--drop", "1,2"], (0, 3, 4)),
        (["--drop", "2-3", "--to-stages", "3,3,3"], (0, 1, 4)),
    ],
)
def test_what_is_dropped(here: Path, options: list[str], kept: tuple[int, ...]) -> None:
    state = small_resnet((5, 5, 5))
    save_file(state, here / "deep.safetensors")
    good("squeeze", "deep.safetensors", *options, "-o", "out.safetensors")
    target = load_file(here / "out.safetensors")
    for place, block in enumerate(kept):
        name = "layer3.{}.conv2.weight"
        np.testing.assert_array_equal(target[name.format(place)], state[name.format(block)])


def test_dry_run_writes_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    out = good("stretch", "model.safetensors", "--to-depth", "20", "--dry-run")
    assert out == STRETCH + "dry run:    would write model-depth20.safetensors\n"
    assert sorted(here.iterdir()) == before


def test_no_check_is_handed_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def save(graph: object, path: Path, *, check: bool = True) -> list[Path]:
        seen.append(check)
        path.write_bytes(b"")
        return [path]

    monkeypatch.setattr(api, "save", save)
    good("stretch", "model.safetensors", "--to-depth", "20")
    good("stretch", "model.safetensors", "--to-depth", "20", "--no-check", "--force")
    assert seen == [True, False]


# -- what fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["model.safetensors", "./model.safetensors", "link.safetensors", "."])
def test_the_source_is_not_overwritten(here: Path, out: str) -> None:
    (here / "link.safetensors").symlink_to("model.safetensors")
    before = (here / "model.safetensors").read_bytes()
    said = bad("stretch", "model.safetensors", "--to-depth", "20", "-o", out)
    assert "the source" in said
    assert "-o OUT" in said
    assert (here / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("mask", ["out.masks.safetensors", "other.safetensors"])
def test_masks_given_are_not_overwritten(here: Path, mask: str) -> None:
    save_file({"layer1.1.conv1.weight": np.zeros((2, 2, 3, 3), np.float32)}, here / mask)
    before = (here / mask).read_bytes()
    arguments = ("stretch", "model.safetensors", "--to-depth", "20", "--mask", mask, "-o")
    said = bad(*arguments, "out.safetensors" if "out" in mask else mask)
    assert "is the --mask" in said
    assert (here / mask).read_bytes() == before
    good(*arguments, "free.safetensors")
    assert (here / "free.masks.safetensors").exists()


def test_the_source_is_not_overwritten_by_default_either(here: Path) -> None:
    (here / "model.safetensors").rename(here / "model-depth14.safetensors")
    said = bad("stretch", "model-depth14.safetensors", "--plan", "0,1|0,1|0,1")
    assert "is the source" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect", "absent.pt"], "absent.pt"),
        (["stretch", "model.safetensors", "--to-depth", "8"], "squeeze"),
        (["squeeze", "model.safetensors", "--to-depth", "20"], "stretch"),
        (["stretch", "model.safetensors", "--to-depth", "21"], "20"),
        (["stretch", "model.safetensors", "--plan", "0,9|0,1|0,1"], "layer1"),
        (["stretch", "model.safetensors", "--to-stages", "layer9=3"], "layer9"),
        (["squeeze", "model.safetensors", "--drop", "0"], "entry"),
        (["stretch", "model.safetensors", "--to-depth", "20", "-o", "absent/out.safetensors"], "absent"),
        (["passes", "nonesuch"], "nonesuch"),
    ],
)
def test_errors_are_one_line(here: Path, arguments: list[str], expected: str) -> None:
    said = bad(*arguments)
    assert expected in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stretch"], "SOURCE"),
        (["stretch", "a.pt"], "--to-depth"),
        (["stretch", "a.pt", "--to-depth", "56", "--to-units", "3"], "--to-depth and --to-units"),
        (["stretch", "a.pt", "--to-depth", "deep"], "deep"),
        (["stretch", "a.pt", "--to-stages", "3,x"], "'x'"),
        (["stretch", "a.pt", "--plan", "0;1"], "0;1"),
        (["stretch", "a.pt", "--to-depth", "56", "--replicate", "one"], "'one'"),
        (["stretch", "a.pt", "--to-depth", "56", "--order", "shuffle"], "interpolate"),
        (["squeeze", "a.pt"], "--to-depth"),
        (["squeeze", "a.pt", "--drop", "odd"], "tail or even"),
        (["inspect", "a.pt", "--input-shape", "1,x"], "1,3,224,224"),
        (["inspect", "a.pt", "--unit", "0"], "0"),
        (["nonesuch"], "nonesuch"),
    ],
)
def test_usage_errors(here: Path, arguments: list[str], expected: str) -> None:
    assert expected in bad(*arguments, code=2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OutputError("out.pt: the disk is full"), "error: out.pt: the disk is full\n"),
        (PermissionError(13, "Permission denied", "out.pt"), "error: out.pt: Permission denied\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (
            ValueError("two\nlines"),
            "error: unexpected ValueError: two lines (run again with --debug for the traceback)\n",
        ),
    ],
)
def test_what_a_user_reads(here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "load", fail)
    assert bad("inspect", "model.safetensors") == line
    result = run("inspect", "model.safetensors", "--debug")
    assert result.exception is error


def test_interrupted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "load", interrupt)
    result = run("inspect", "model.safetensors")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_errors_in_a_process(here: Path) -> None:
    result = in_a_process("inspect", "absent.safetensors", cwd=here)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert "Traceback" in in_a_process("inspect", "absent.safetensors", "--debug", cwd=here).stderr


# -- diff and passes ------------------------------------------------------------------------------------------------


DIFF = """\
              model.safetensors  other.safetensors
depth         14                 16
parameters    2,988              3,300
sparsity      0.0 %              0.0 %
stage layer1  2                  2
stage layer2  2                  3
stage layer3  2                  2

10 only in other.safetensors:
  layer2.2.bn1.bias
  layer2.2.bn1.running_mean
  layer2.2.bn1.running_var
  layer2.2.bn1.weight
  layer2.2.bn2.bias
  layer2.2.bn2.running_mean
  layer2.2.bn2.running_var
  layer2.2.bn2.weight
  layer2.2.conv1.weight
  layer2.2.conv2.weight
1 of another shape or type:
  linear.weight  float32[10, 8] | float32[11, 8]
1 of other values:
  conv1.weight
"""


def test_diff(here: Path) -> None:
    one, other = small_resnet(), small_resnet((2, 3, 2))
    other.update({name: value for name, value in one.items() if name in other})
    other["conv1.weight"] = one["conv1.weight"] + 1
    other["linear.weight"] = np.zeros((11, 8), np.float32)
    save_file(other, here / "other.safetensors")
    out = good("diff", "model.safetensors", "other.safetensors")
    assert out.startswith(DIFF)
    assert out.endswith(f"{len(one) - 2} tensors are equal\n")
    found = json.loads(good("diff", "model.safetensors", "other.safetensors", "--json"))
    assert found["same"] is False
    assert found["tensors_differ"] == ["conv1.weight"]
    assert [item["name"] for item in found["shapes_differ"]] == ["linear.weight"]
    assert (found["only_in_a"], len(found["only_in_b"])) == ([], 10)
    assert found["b"]["stages"] == {"layer1": 2, "layer2": 3, "layer3": 2}


def test_diff_of_a_network_with_itself(here: Path) -> None:
    out = good("diff", "model.safetensors", "model.safetensors")
    assert out.endswith(f"the same {len(small_resnet())} tensors, byte for byte\n")


@pytest.mark.slow
def test_passes() -> None:
    out = good("passes")
    assert out.startswith("stretch: Clone repeatable units")
    assert re.search(r"^order +append\|interpolate +append +", out, re.MULTILINE)
    assert not re.search(r"Sequence|Mapping|\bAny\b|Graph|None", re.sub("(?m)^[a-z-]+: .*", "", out))
    assert not re.search(r"^(like|others|scales) ", out, re.MULTILINE)  # no text gives these
    assert re.search(r"^open +all\|batch\|none +all +which extents of a traced", out, re.MULTILINE)
    assert re.search(r"^data +text +none +A file of inputs \(.*\), samples along", out, re.MULTILINE)
    names = good("passes", "--names").split()
    assert names[:2] == ["stretch", "squeeze"]
    assert set(names[2:]) == {
        *("rescale-residual", "identity-blocks", "stack", "depth-upscale"),
        *("net2deeper", "net2wider", "morph", "drop-by-similarity"),
        *("compact", "fold-batchnorm", "nm-project", "prune"),
        *("ghost-skips", "ghost-softness", "remove-ghosts", "layerwise-rescale"),
        *("fold-constants", "remove-identities", "cse", "dce"),
    }
    assert good("passes", "squeeze").startswith("squeeze: Delete")


# -- on a terminal --------------------------------------------------------------------------------------------------


def test_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich draws the same cells; brackets stay what they are."""
    from elastic_ir.cli import tables

    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    out = good("stretch", "model.safetensors", "--to-depth", "20", "--dry-run")
    assert re.search(r"layer1 +layer1\.0 +2 -> 3 +0,1,1", out)
    assert "─" in out


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_tables_fit_the_terminal(here: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """No number is broken, and what has no room is named; below that each cell has a line."""
    from elastic_ir.cli import tables

    rows: list[Sequence[str]] = [
        ["features.3", "1,234,567", "torchvision.models.swin.SwinTransformerBlock", "15 %"]
    ]
    columns = ("stage", "parameters", "type", "depth")
    table = tables.Table(columns, rows, numeric=("parameters", "depth"), spare=("depth",))
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    out = CliRunner().invoke(click.Command("show", callback=lambda: tables.show_table(table))).output
    assert max(map(len, out.splitlines())) <= width
    assert "1,234,567" in out and "features.3" in out
    assert ("Not shown for want of room: depth." in out) == (width == 40)
    narrow: list[Sequence[str]] = [["a", *["1,234,567,890"] * 9]]
    names = [f"number {at}" for at in range(9)]
    table = tables.Table(("name", *names), narrow, numeric=names)
    out = CliRunner().invoke(click.Command("show", callback=lambda: tables.show_table(table))).output
    assert "  number 8: 1,234,567,890\n" in out


@pytest.mark.parametrize("width", [80, 60, 40])
def test_numbers_are_whole_however_narrow_the_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """In columns of text, in lists and in facts: plans, shapes, versions, counts."""
    from elastic_ir.cli import tables

    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    plan = ",".join(f"{at}-{at + 15}" for at in range(0, 160, 16))
    wanted = ["1,100,048,384", "1,540,523,008", ">=2.6.1,!=2.6.2,!=2.6.3", "1x16x32x32"]

    def show() -> None:
        rows = [["model.language_model.layers", *wanted], ["a", *wanted]]
        tables.show_table(tables.Table(("stage", "a", "b", "fits", "shape"), [*rows]))
        tables.show_table(tables.Table(("stage", "plan"), [["model.layers", plan]]))
        tables.show_facts([("parameters", " -> ".join(wanted[:2])), ("note", f"copies of {plan}")])

    out = CliRunner().invoke(click.Command("show", callback=show)).output
    assert max(map(len, out.splitlines())) <= width
    assert all(out.count(number) >= 2 for number in wanted)
    assert all(out.count(part) == 2 for part in re.findall(r"\d+-\d+", plan))


@pytest.mark.parametrize("width", [80, 40])
def test_a_bar_leaves_room_for_its_numbers(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from elastic_ir.cli import bars

    monkeypatch.setenv("COLUMNS", str(width))
    kinds = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = bars._bars("writing a-folder-of-a-long-name", *kinds)
    bar.add_task("", total=5_400_000_000, completed=2_700_000_000)
    console = Console(width=width)
    with console.capture() as shown:
        console.print(bar.get_renderable())
    assert "2.7/5.4 GB" in shown.get() and shown.get().count("\n") == 1


def test_text_is_shortened_in_its_middle() -> None:
    from elastic_ir.cli.tables import fitted, shortened

    assert shortened("features.0.conv.weight", 9) == "feat…ight"
    assert shortened("short", 5) == "short"
    rows = [("n", "name"), ("12", "features.0.conv.weight")]
    assert fitted(rows, [True, False], 20) == [["n", "name"], ["12", "feature….weight"]]
    assert fitted(rows, [True, False], 10) is None


@pytest.mark.slow
def test_fresh_weights_of_a_librarys_name_are_told_where_they_are_written(here: Path) -> None:
    name = "timm:resnet18.a1_in1k"
    note = (
        f"note:       {name} has fresh weights; --pretrained takes the library's, and for those of a file give it with "
        f"--arch {name}\n"
    )
    assert note in good("stretch", name, "--to-stages", "layer3=3", "--dry-run")
    assert note in good("squeeze", name, "--to-stages", "layer3=1", "--dry-run")
    assert note in good("apply", name, "--passes", "fold-batchnorm", "--dry-run")
    assert note in good("export", name, "-o", "net.pt", "--no-check")
    assert "fresh weights" not in good("export", name, "-o", "net.py", "--no-check")  # holds no weights
    assert "fresh weights" not in good("inspect", name)
    told = good("stretch", "net.pt", "--arch", name, "--to-stages", "layer3=3", "--dry-run")
    assert "fresh weights" not in told


def test_messages_of_the_command_line_speak_of_its_options(here: Path) -> None:
    told = bad("stretch", "model.safetensors", "--to-units", "4")
    assert "--to-units is for networks of one stage" in told and "use --to-stages" in told
    assert "to_" not in told
    result = run("stretch", "model.safetensors", "--to-stages", "x")
    assert result.exit_code == 2
    assert "'x' in 'x' is not a number of blocks; write one for each stage" in " ".join(result.output.split())


def test_a_factory_that_fails_shows_its_traceback_only_with_debug(here: Path) -> None:
    (here / "failing_net.py").write_text("def make():\n    return {}['x']\n")
    line = "the network's factory failing_net:make fails without arguments: KeyError: 'x'"
    assert bad("stretch", "failing_net:make", "--to-depth", "8").strip() == f"error: {line}"
    result = run("inspect", "failing_net:make", "--debug")
    assert isinstance(result.exception, SourceError)
    assert isinstance(result.exception.__cause__, KeyError)


# -- rendering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "text"),
    [((), ""), ((0,), "0"), ((0, 1), "0,1"), ((0, 1, 2, 1, 2), "0-2,1,2"), ((0, 1, 1, 2, 3, 4), "0,1,1-4")],
)
def test_indices_as_a_plan_takes_them(indices: tuple[int, ...], text: str) -> None:
    from elastic_ir.cli.tables import indices_text
    from elastic_ir.plans.plan import parse_indices

    assert indices_text(indices) == text
    assert not text or tuple(parse_indices(text)) == indices


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_345_678, "2.3 MB")]
)
def test_file_size(size: int, text: str) -> None:
    from elastic_ir.cli.tables import file_size

    assert file_size(size) == text
