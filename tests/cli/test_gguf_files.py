"""The command line on GGUF files: what it shows, what it writes, and what it refuses before it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elastic_ir.cli.app import elastic_ir
from elastic_ir.formats.gguf.parts import read_parts
from tests.networks.gguf_files import Type, llama, read_back


def run(*arguments: str) -> Result:
    return CliRunner().invoke(elastic_ir, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of four layers, worked in."""
    monkeypatch.chdir(tmp_path)
    llama(tmp_path / "m.gguf", 4, {"attention.head_count_kv": [2, 1, 2, 1]}, types=Type.Q8_0)
    return tmp_path


def test_inspect_shows_architecture_and_types(here: Path) -> None:
    shown = run("inspect", "m.gguf")
    assert shown.exit_code == 0
    assert "architecture: llama\n" in shown.output
    assert "tensors:      30 of Q8_0, 9 of F32\n" in shown.output
    found = json.loads(run("inspect", "m.gguf", "--json").output)
    assert found["file"] == {"architecture": "llama", "tensors": "30 of Q8_0, 9 of F32"}
    assert found["stages"][0]["blocks"] == 4


def test_stretch_and_squeeze_name_the_result_and_say_what_follows(here: Path) -> None:
    done = run("stretch", "m.gguf", "--plan", "0-3,1")
    assert done.exit_code == 0, done.output
    assert "metadata:   llama.block_count 4 -> 5\n" in done.output
    assert "metadata:   llama.attention.head_count_kv [2, 1, 2, 1] -> [2, 1, 2, 1, 1]\n" in done.output
    assert "wrote:      m-5.gguf" in done.output
    done = run("squeeze", "m-5.gguf", "--drop", "0")
    assert done.exit_code == 0, done.output
    assert read_back(here / "m-4.gguf")[0]["llama.attention.head_count_kv"] == [1, 2, 1, 1]
    checked = run("verify", "m-4.gguf")
    assert checked.exit_code == 0
    assert "file:       m-4.gguf (39 tensors" in checked.output
    assert "result:     equal\n" in checked.output
    assert "39 tensors are equal" not in run("diff", "m.gguf", "m-4.gguf").output
    assert "the same 39 tensors, byte for byte" in run("diff", "m.gguf", "m.gguf").output


def test_a_dry_run_writes_nothing(here: Path) -> None:
    shown = run("stretch", "m.gguf", "--plan", "0-3,1", "--shard-size", "60KB", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "m-5-00001-of-00003.gguf" in shown.output
    assert "dry run:    would write m-5.gguf" in shown.output
    assert [path.name for path in here.iterdir()] == ["m.gguf"]


def test_parts_by_size(here: Path) -> None:
    done = run("stretch", "m.gguf", "--plan", "0-3,1", "--shard-size", "60KB", "-o", "out.gguf")
    assert done.exit_code == 0, done.output
    parts = read_parts(here / "out-00001-of-00003.gguf")
    assert (len(parts), sum(len(part.tensors) for part in parts)) == (3, 48)
    assert all(sum(path.stat().st_size for path in [part.path]) < 70_000 for part in parts)
    again = run("stretch", "out-00001-of-00003.gguf", "--plan", "0-4,1")
    assert "wrote:      out-6-00001-of-00004.gguf" in again.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("stretch", "torchvision:resnet18", "--to-depth", "34", "-o", "x.gguf"), "only what was one is written so"),
        (("stretch", "m.gguf", "--to-units", "5", "-o", "x.pt"), "it is written as .gguf"),
        (("stretch", "m.gguf", "--to-units", "5", "-o", "m.gguf"), "m.gguf is the source"),
        (("stretch", "m.gguf", "--to-units", "5", "--resume"), "--resume is for checkpoint folders"),
        (("stretch", "m.gguf", "--to-units", "5", "--zero", "attn_q"), "Q8_0, whose zeros may not mean zero"),
        (("stretch", "m.gguf", "--to-units", "5", "--arch", "torchvision:resnet18"), "leave out --arch"),
        (("verify", "m.gguf"), "has no elastic_ir.record"),
        (("verify", "absent.gguf"), "absent.gguf does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(here: Path, command: tuple[str, ...], message: str) -> None:
    refused = run(*command)
    assert refused.exit_code in (1, 2)
    assert message in refused.output
    assert [path.name for path in here.iterdir()] == ["m.gguf"]


def test_a_file_is_synced_where_it_replaces_one_or_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def told(path: Path) -> None:
        synced.append(path.name)

    monkeypatch.setattr("elastic_ir.formats.files.sync", told)
    source, out = llama(tmp_path / "m.gguf", 4), tmp_path / "out.gguf"
    command = ["stretch", str(source), "--to-units", "6", "-o", str(out)]
    for more, times in (([], 0), (["--force"], 1), (["--force", "--durable"], 1)):
        synced.clear()
        run(*command, *more)
        assert len([name for name in synced if "out" in name]) == times, more
    out.unlink()
    synced.clear()
    run(*command, "--durable")
    assert len([name for name in synced if "out" in name]) == 1
