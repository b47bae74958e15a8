"""What is there already: no command writes over it without ``--force``, and with it only when the new is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from elastic_ir import api
from elastic_ir.errors import OutputError
from elastic_ir.formats.files import take_name
from tests.checkpoints.folders import config, llama, write
from tests.cli.test_cli import bad, good, small_resnet

HINT = "choose another name with -o OUT, or {} it with --force"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file(small_resnet(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (["stretch", "model.safetensors", "--to-depth", "20"], "model-depth20.safetensors"),
        (["stretch", "model.safetensors", "--to-depth", "20", "-o", "out.pt"], "out.pt"),
        (["stretch", "model.safetensors", "--to-depth", "20", "-o", "o.safetensors"], "o.masks.safetensors"),
        (["squeeze", "model.safetensors", "--drop", "1", "-o", "out.ticket"], "out.ticket"),
        (["apply", "model.safetensors", "--passes", "remove-ghosts"], "model-applied.safetensors"),
        (["export", "model.safetensors"], "model.onnx"),
        (["export", "model.safetensors", "-o", "out.onnx"], "out.onnx.data"),
        (["export", "model.safetensors", "-o", "out.pt"], "out.pt"),
    ],
)
def test_files_stay(here: Path, arguments: list[str], there: str) -> None:
    (here / there).write_text("mine")
    assert bad(*arguments) == f"error: {there} exists already; {HINT.format('write over')}\n"
    assert (here / there).read_text() == "mine"


def test_force_writes_over_files(here: Path) -> None:
    save_file({"layer1.1.conv1.weight": np.zeros((2, 2, 3, 3), np.float32)}, here / "mask.safetensors")
    arguments = ("stretch", "model.safetensors", "--to-depth", "20", "-o", "out.safetensors")
    good(*arguments, "--mask", "mask.safetensors")
    assert (here / "out.masks.safetensors").exists()
    first = (here / "out.safetensors").read_bytes()
    assert "exists already" in bad("squeeze", "model.safetensors", "--drop", "1", "-o", "out.safetensors")
    assert (here / "out.safetensors").read_bytes() == first
    good("stretch", "model.safetensors", "--to-depth", "26", "-o", "out.safetensors", "--force")
    assert api.load(here / "out.safetensors").structure.depth == 26
    assert not (here / "out.masks.safetensors").exists()  # they were those of the file that went


def test_the_source_stays_with_force(here: Path) -> None:
    said = bad("stretch", "model.safetensors", "--to-depth", "20", "-o", "model.safetensors", "--force")
    assert said.startswith("error: model.safetensors is the source, which would be written over")


def test_a_dry_run_says_what_is_there(here: Path) -> None:
    (here / "out.pt").write_text("mine")
    arguments = ("stretch", "model.safetensors", "--to-depth", "20", "-o", "out.pt", "--dry-run")
    assert good(*arguments).endswith(
        "would write out.pt, which is there: give --force, or another name with -o OUT\n"
    )
    assert good(*arguments, "--force").endswith("would write out.pt, which is there: it is replaced\n")
    (here / "model-applied.safetensors").write_text("mine")
    text = good("apply", "model.safetensors", "--passes", "remove-ghosts", "--dry-run")
    assert "would write model-applied.safetensors, which is there: give --force" in text


def test_a_dry_run_of_a_recipe_needs_no_name(here: Path) -> None:
    write(here / "llama", llama(), config(4))
    (here / "slices.yaml").write_text(
        "slices:\n  - sources: [{model: llama, layer_range: [0, 4]}]\n"
        "  - sources: [{model: llama, layer_range: [1, 3]}]\nmerge_method: passthrough\n"
    )
    assert "would write slices (" in good("stretch", "slices.yaml", "--dry-run")
    assert "state where the result goes, by -o OUT" in bad("stretch", "slices.yaml", code=2)


# -- folders --------------------------------------------------------------------------------------------------------


def test_folders_stay_and_are_replaced_whole(here: Path) -> None:
    write(here / "llama", llama(), config(4))
    arguments = ("stretch", "llama", "--to-units", "6", "--no-check", "-o", "deeper")
    good(*arguments)
    (here / "deeper" / "note.txt").write_text("mine")
    text = f"error: deeper exists already and is not an empty folder; {HINT.format('replace')}\n"
    assert bad(*arguments) == text
    assert "which is there: give --force" in good(*arguments, "--dry-run")
    assert (here / "deeper" / "note.txt").exists()
    good("stretch", "llama", "--to-units", "5", "--no-check", "-o", "deeper", "--force")
    assert not (here / "deeper" / "note.txt").exists()
    assert len(api.load(here / "deeper", headers_only=True).stages[0]) == 5
    assert {path.name for path in here.iterdir()} == {"llama", "deeper", "model.safetensors"}
    good("undo", "deeper", "-o", "again")
    assert "exists already and is not an empty folder" in bad("undo", "deeper", "-o", "again")
    good("undo", "deeper", "-o", "again", "--force")


def test_only_folders_of_models_are_replaced(here: Path) -> None:
    write(here / "llama", llama(), config(4))
    (here / "photos").mkdir()
    (here / "photos" / "one.jpg").write_text("mine")
    arguments = ("stretch", "llama", "--to-units", "6", "--no-check", "--force", "-o")
    text = (
        "photos is a folder without a model, which --force does not replace; choose another name with -o OUT"
    )
    assert text in bad(*arguments, "photos")
    assert (here / "photos" / "one.jpg").exists()
    assert "is the source" in bad(*arguments, "llama")
    (here / "inner").mkdir()
    shutil.copytree(here / "llama", here / "inner" / "llama")
    assert "would be written over" in bad(*arguments, "inner/../llama")


def test_a_folder_comes_back_where_the_new_one_cannot_have_its_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(FileNotFoundError):
        take_name(tmp_path / "absent", tmp_path / "there", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="not empty"):
        take_name(tmp_path / "new", tmp_path / "there")


def test_the_library_saves_over_files_as_before(here: Path) -> None:
    graph = api.load("model.safetensors")
    for _ in range(2):
        api.save(graph, "again.safetensors")
    write(here / "llama", llama(), config(4))
    folder = api.load("llama", headers_only=True)
    api.save(folder, "copy")
    with pytest.raises(OutputError, match="copy exists already and is not an empty folder"):
        api.save(folder, "copy")
