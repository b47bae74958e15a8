"""What every command has: one JSON object on standard output, silence, and more words; and bars that stay out of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.numpy import save_file

from elastic_ir.cli.app import COMMANDS, elastic_ir
from elastic_ir.emit.latency import Latency
from tests.checkpoints.folders import config, llama, write
from tests.cli.test_cli import ROOT, good, run, small_resnet


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file(small_resnet(), tmp_path / "model.safetensors")
    return tmp_path


def leaves() -> Iterator[tuple[str, click.Command]]:
    """All commands by their names, those of groups too."""
    for name in COMMANDS:
        command = elastic_ir.load(name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())
        else:
            yield name, command


@pytest.mark.parametrize(("name", "command"), list(leaves()))
def test_every_command_has_the_flags(name: str, command: click.Command) -> None:
    options = {word for option in command.params for word in option.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose", "--debug"} <= options
    if "--out" in options:
        assert "--force" in options or name == "lottery find"  # which goes on with what is there


def data_of(*arguments: str) -> dict[str, Any]:
    """What a command prints with ``--json``, which is all that it prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert not result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_change_as_data(here: Path) -> None:
    found = data_of("stretch", "model.safetensors", "--to-depth", "20", "-o", "deep.safetensors")
    assert found["before"]["depth"] == 14 and found["after"]["depth"] == 20
    assert found["plan"]["layer1"] == [0, 1, 1]
    size = (here / "deep.safetensors").stat().st_size
    assert found["wrote"] == [{"path": "deep.safetensors", "bytes": size}] and found["would_write"] is None
    found = data_of("squeeze", "deep.safetensors", "--to-depth", "14", "--dry-run")
    assert found["wrote"] == [] and found["would_write"] == "deep-depth14.safetensors"
    found = data_of("undo", "deep.safetensors", "-o", "again.safetensors")
    assert found["after"]["depth"] == 14 and found["facts"]["copies"][0].endswith(
        "equal to the one that is taken"
    )
    found = data_of("apply", "model.safetensors", "--passes", "remove-ghosts", "--dry-run")
    assert [one["pass"] for one in found["passes"]] == ["remove-ghosts"] and found["measured"] is None
    write(here / "llama", llama(), config(4))
    found = data_of("stretch", "llama", "--to-units", "6", "--no-check", "-o", "deeper")
    assert found["plan"] == {"model.layers": [0, 1, 2, 3, 0, 1]}
    assert found["wrote"][0]["path"] == "deeper"


def test_other_results_as_data(here: Path) -> None:
    assert data_of("export", "model.safetensors", "-o", "copy.pt")["wrote"][0]["path"] == "copy.pt"
    option = data_of("passes", "squeeze")["passes"]["squeeze"]["options"][0]
    assert set(option) == {"option", "type", "default", "meaning"}
    assert "stages" in data_of("inspect", "model.safetensors")
    assert data_of("diff", "model.safetensors", "copy.pt")["same"] is True


def test_errors_as_data(here: Path) -> None:
    for arguments, code, error in (
        (("inspect", "absent.pt"), 1, "absent.pt"),
        (("stretch", "model.safetensors"), 2, "state how deep"),
        (("stretch", "model.safetensors", "--nonesuch"), 2, "nonesuch"),
    ):
        result = run(*arguments, "--json")
        assert result.exit_code == code
        assert error in json.loads(result.stdout)["error"]
        assert error in result.stderr


def test_quiet_says_errors_alone(here: Path) -> None:
    result = run("stretch", "model.safetensors", "--to-depth", "20", "-q", "--trust", "json")
    assert (result.exit_code, result.output) == (0, "") and (here / "model-depth20.safetensors").exists()
    assert run("inspect", "model.safetensors", "--quiet").output == ""
    assert run("inspect", "absent.pt", "-q").stderr.startswith("error: ")


def test_verbose_says_how_long_steps_take(here: Path) -> None:
    result = run("stretch", "model.safetensors", "--to-depth", "20", "-v")
    lines = [line.partition(": ")[0] for line in result.stderr.splitlines() if line.endswith(" s")]
    writing = "writing model-depth20.safetensors"
    assert lines == ["reading model.safetensors", "stretch of model.safetensors", writing]
    assert result.stdout == good("stretch", "model.safetensors", "--to-depth", "20", "--force")


# -- processes, pipes and terminals ---------------------------------------------------------------------------------


def process(*arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "elastic_ir.cli", *arguments], env={**environment, "COLUMNS": "80"}, **settings
    )


def test_a_broken_pipe_ends_quietly(here: Path) -> None:
    with process("passes", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.read(1)
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(60) == 1


@pytest.mark.slow
def test_a_missing_file_is_told_without_torch(here: Path) -> None:
    for arguments in (("inspect", "absent.pt"), ("stretch", "absent.pt", "--to-depth", "20"), ("export", "absent.pt"),
                      ("apply", "absent.pt", "--passes", "compact"), ("diff", "model.safetensors", "absent.pt"),
                      ("undo", "absent.pt"), ("verify", "absent")):  # fmt: skip
        code = (
            "import sys\nfrom elastic_ir.cli.app import elastic_ir as run\n"
            "try:\n    run(sys.argv[1:], prog_name='elastic-ir')\nfinally:\n"
            "    print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and done.stderr.startswith("error: absent"), done.stderr
        assert done.stdout.endswith("False\n"), arguments


def on_a_terminal(*arguments: str, stdout: int | None = None) -> str:
    """What a command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with process(
        *arguments, stdin=theirs, stdout=theirs if stdout is None else stdout, stderr=theirs
    ) as command:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux ends a terminal so
                part = b""
            if not part:
                break
            shown += part
        command.wait(60)
    os.close(ours)
    return shown.decode()


def test_bars_leave_standard_output_alone(here: Path) -> None:
    with (here / "shown").open("wb") as file:
        seen = on_a_terminal("inspect", "model.safetensors", stdout=file.fileno())
    assert "reading model.safetensors" in seen  # the line that moves
    assert (here / "shown").read_text() == good("inspect", "model.safetensors")
    assert on_a_terminal("inspect", "model.safetensors", "-q") == ""


# -- what is measured -----------------------------------------------------------------------------------------------


def test_a_ratio_is_that_of_the_numbers_beside_it() -> None:
    found = Latency((2.0, 4.0, 4.0, 6.0, 4.0, 4.0), (1.0, 2.0, 3.0, 3.0, 2.0, 2.0))
    assert (found.before, found.after, found.ratio) == (4.0, 2.0, 0.5)
    assert found.spread[0] <= 0.5 <= found.spread[1] < 1 and not found.noise
    assert Latency((1.00006,) * 9, (2.00012,) * 9).ratio == 2.0  # as it is shown
    assert Latency((1.0,) * 8, (1.1, 0.9) * 4).noise
    assert not Latency((1.0,) * 8, (1.1, 1.2) * 4).noise
    assert Latency((1.0,) * 5, (2.0,) * 5).noise  # too few to tell
    skewed = Latency((1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 1.0, 1.0), (1.0, 5.0, 5.0, 1.0, 1.0, 5.0, 1.0, 1.0))
    assert skewed.spread[0] <= skewed.ratio <= skewed.spread[1] and skewed.noise
