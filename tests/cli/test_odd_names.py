"""Names that hold what a terminal or a page would obey: escape sequences, ends of lines, reversed text, markup."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import elastic_ir as eir
from elastic_ir.cli import tables
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import LONGEST, ElasticError, SourceError, printable

ODD = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "\u202egnp", "a\nerror: b", "a\rb", "\x7f", "[red]c[/red]", "\u2028x",
)  # fmt: skip


def hidden(text: str) -> set[str]:
    """What of a text no terminal should get, the ends of its lines apart."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def network(folder: Path, odd: str) -> Path:
    names = [f"{odd}.layers.{n}.weight" for n in range(3)] + [f"{odd}.head.weight"]
    path = folder / "model.safetensors"
    save_file({name: torch.ones(4, 4) for name in names}, path)
    return path


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("terminal", [False, True])
def test_no_name_is_obeyed(odd: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = network(tmp_path, odd)
    monkeypatch.setattr(tables, "on_terminal", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    deeper = tmp_path / "out.safetensors"
    commands = (
        ["stretch", str(path), "--to-units", "5", "-o", str(deeper)],
        ["inspect", str(path)],
        ["inspect", str(path), "--json"],
        ["diff", str(path), str(deeper)],
        ["apply", str(path), "--passes", "stretch{to_units=4}", "--print-after-all", "--dry-run"],
        ["stretch", str(path), "--to-stages", f"{odd}=3"],
        ["inspect", str(tmp_path / f"{odd.replace('/', '')}.pt")],
    )
    for command in commands:
        told = CliRunner().invoke(elastic_ir, command)
        assert told.exit_code in (0, 1, 2), told.output
        assert not hidden(told.output), command
        if told.exit_code == 1:
            assert [line[:7] for line in told.output.splitlines()] == ["error: "]
    told = CliRunner().invoke(elastic_ir, ["inspect", str(path)])
    assert printable(odd) in told.output  # markup too is shown as it is


def test_errors_of_the_library_hold_one_plain_line(tmp_path: Path) -> None:
    for odd in ODD:
        assert not hidden(str(SourceError(odd))) and "\n" not in str(SourceError(odd))
    with pytest.raises(ElasticError) as said:
        eir.load(tmp_path / "\x1b[2J\nerror.pt")
    assert "\\x1b[2J\\nerror.pt" in str(said.value)


@pytest.mark.slow
def test_a_model_card_holds_names_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "a`<script>|\x1b[31m\n# b"
    folder.mkdir()
    network(folder, "plain").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    eir.save(eir.stretch(eir.load(folder, headers_only=True), to_units=4), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert not hidden(card) and "\n# b" not in card
    assert "`a&#96;<script>|\\x1b[31m\\n# b`" in card


@pytest.mark.slow
@given(st.text(max_size=400))
def test_printable_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    made = printable(text)
    assert not hidden(made) and len(made.splitlines()) <= 1
    assert printable(made) == made or len(made) > LONGEST
    assert max(map(len, made.split()), default=0) <= LONGEST
    if len(text) <= LONGEST and not hidden(text) and "\n" not in text:
        assert made == text
