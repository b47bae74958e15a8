"""Ticket files on the command line: read, written, named by default, as ``--mask``, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from tests.emit.nets import contents, same_tensors, ticket


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, entered, with ``a.ticket`` in it."""
    monkeypatch.chdir(tmp_path)
    eir.save(ticket(), tmp_path / "a.ticket")
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(elastic_ir, arguments, prog_name="elastic-ir")
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


@pytest.mark.usefixtures("here")
def test_inspect() -> None:
    assert "found from: graph (torch.fx)\n" in run("inspect", "a.ticket")
    found = json.loads(run("inspect", "a.ticket", "--json"))
    assert (found["source"], found["depth"]) == ("a.ticket", 14)
    assert found["sparsity"] > 0.6


def test_stretch_and_squeeze_back(here: Path) -> None:
    out = run("stretch", "a.ticket", "--to-depth", "20")
    assert "wrote:      a-depth20.ticket (" in out
    run("squeeze", "a-depth20.ticket", "--to-depth", "14", "-o", "back.TICKET")
    assert contents(here).keys() == {"a.ticket", "a-depth20.ticket", "back.TICKET"}
    same_tensors(eir.load("back.TICKET").state_dict(), ticket().state_dict())
    same_tensors(eir.load("back.TICKET").masks(), ticket().masks())
    assert "the same" in run("diff", "a.ticket", "back.TICKET")


def test_from_and_to_other_forms(here: Path) -> None:
    eir.save(ticket(), here / "b.pt")
    run("stretch", "b.pt", "--to-depth", "20", "-o", "b.ticket")
    run("squeeze", "b.ticket", "--to-depth", "14", "-o", "c.pt")
    same_tensors(eir.load("c.pt").masks(), ticket().masks())
    same_tensors(eir.load("c.pt").state_dict(), ticket().state_dict())


def test_as_a_mask_file(here: Path) -> None:
    graph = ticket()
    for weight in graph.weights.values():
        weight.storage.mask = None
    eir.save(graph, here / "dense.pt")
    wanted = json.loads(run("inspect", "a.ticket", "--json"))["sparsity"]
    assert json.loads(run("inspect", "dense.pt", "--mask", "a.ticket", "--json"))["sparsity"] == wanted


def test_bad_tickets_get_one_line(here: Path) -> None:
    whole = (here / "a.ticket").read_bytes()
    (here / "a.ticket").write_bytes(whole[:-9])
    said = run("inspect", "a.ticket", code=1)
    assert said.startswith("error: a.ticket is truncated: ")
    assert said.count("\n") == 1
    (here / "a.ticket").write_bytes(b"")
    assert run("stretch", "a.ticket", "--to-depth", "20", code=1) == "error: a.ticket is empty\n"
    assert contents(here).keys() == {"a.ticket"}
