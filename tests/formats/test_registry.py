"""The registry of formats: each suffix said once, files told by it or by their bytes, plug-ins that fit or do not."""

from __future__ import annotations

import ast
import importlib.metadata
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import elastic_ir as eir
from elastic_ir import formats
from elastic_ir.cli.app import elastic_ir
from elastic_ir.cli.output import kept_suffix
from elastic_ir.errors import ElasticError, EmitError, OutputError, SourceError
from elastic_ir.formats import OWN, PYTHON, Format, ReadOptions, Stored, register, registered
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.torch_bridge import TorchData
from elastic_ir.zoo import cifar_resnet

ROOT = Path(__file__).parents[2]
HERE = __name__

#: What the files of the format that is tested here hold, by their paths: it keeps them in memory.
HELD: dict[bytes, Stored] = {}


def read_held(path: Path, options: ReadOptions) -> Stored:
    return HELD[path.read_bytes()]


def write_held(graph: Graph, path: Path, check: bool) -> list[Path]:
    from elastic_ir.emit.files import save_stored

    def write(temporary: Path, stored: Stored) -> None:
        key = f"HELD{len(HELD)}".encode()
        HELD[key] = stored
        temporary.write_bytes(key)

    return save_stored(graph, path, check, write)


def write_without_masks(graph: Graph, path: Path, check: bool) -> list[Path]:
    from elastic_ir.emit.files import save_stored

    def write(temporary: Path, stored: Stored) -> None:
        HELD[b"bare"] = Stored(stored.tensors, {}, stored.graph)
        temporary.write_bytes(b"bare")

    return save_stored(graph, path, check, write)


def write_half(graph: Graph, path: Path, check: bool) -> list[Path]:
    from elastic_ir.emit.files import save_stored

    def write(temporary: Path, stored: Stored) -> None:
        HELD[b"half"] = Stored(dict(list(stored.tensors.items())[1:]), stored.masks, stored.graph)
        temporary.write_bytes(b"half")

    return save_stored(graph, path, check, write)


def fails(*arguments: object) -> list[Path]:
    raise ValueError("no luck today")


HELD_FORMAT = Format(
    "held", (".held", ".hld"), f"{HERE}:read_held", f"{HERE}:write_held",
    recognises=lambda head: head.startswith(b"HELD"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test registers for itself."""
    monkeypatch.setattr(formats, "_registered", [])
    HELD.clear()


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Have an installed package offer an entry point."""
    real = importlib.metadata.entry_points

    def with_it(**given: str) -> Any:
        if given == {"group": formats.GROUP}:
            return [importlib.metadata.EntryPoint("held", value, formats.GROUP)]
        return real(**given)

    monkeypatch.setattr(importlib.metadata, "entry_points", with_it)


def small() -> Graph:
    masks = {"layer1.0.conv1.weight": np.arange(144).reshape(4, 4, 3, 3) % 3 == 0}
    return eir.trace(cifar_resnet(14, width=4), torch.zeros(1, 3, 8, 8), masks=masks)


def said(kind: type[ElasticError], path: Path, graph: Graph | None = None) -> str:
    with pytest.raises(kind) as caught:
        eir.load(path) if graph is None else eir.save(graph, path)
    return str(caught.value)


# -- our own -----------------------------------------------------------------------------------------------------------


def texts(path: Path) -> set[object]:
    """The constants of a file, without the pieces of f-strings: those are names of files."""
    tree = ast.parse(path.read_text("utf-8"))
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in pieces
    }


@pytest.mark.slow
def test_every_suffix_is_said_once() -> None:
    """In the registry: everybody else asks it. ``.py`` files are also what Python imports."""
    all_of_them = [end for form in OWN for end in form.suffixes]
    assert len(all_of_them) == len(set(all_of_them))
    asked = set(all_of_them) - set(PYTHON.suffixes)
    files = [
        path
        for folder in ("elastic_ir", "passes", "frontends", "cli")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 200
    found = {str(path.relative_to(ROOT)) for path in files if asked & texts(path)}
    assert found == {"elastic_ir/formats/__init__.py"}


def test_every_reference_of_ours_leads_somewhere() -> None:
    for form in OWN:
        for reference in (form.read, form.write):
            if reference is not None:
                assert callable(pkgutil.resolve_name(reference))


@pytest.mark.parametrize("name", ["net.ckpt", "net", "net.weights", "net.bin.2"])
def test_a_file_of_another_suffix_is_told_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    model = cifar_resnet(14, width=4)
    path = tmp_path / name
    for write in (
        lambda: save_file(model.state_dict(), path),
        lambda: torch.save(model.state_dict(), path),
        lambda: torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False),
    ):
        write()
        assert [len(stage) for stage in eir.load(path).stages] == [2, 2, 2]


def test_a_file_that_is_nobody_s_names_the_suffixes_there_are(tmp_path: Path) -> None:
    path = tmp_path / "net.ggml"
    path.write_bytes(b"GGML" + bytes(60))
    known = ".pt, .safetensors, .onnx, .ticket, .pt2, .gguf"
    assert said(SourceError, path).endswith(
        f"it begins with b'GGML\\x00\\x00\\x00\\x00'; networks are read from {known} files"
    )
    register(HELD_FORMAT)
    assert said(SourceError, path).endswith(f"; networks are read from {known}, .held files")
    assert said(SourceError, tmp_path / "absent.ggml") == f"{tmp_path / 'absent.ggml'} does not exist"


def test_an_extension_that_nobody_writes_names_those_there_are(tmp_path: Path) -> None:
    use = "net.ggml: the extension .ggml cannot be written; use .pt, .safetensors, .onnx, .ticket, .gguf, .py"
    assert said(OutputError, tmp_path / "net.ggml", small()) == f"{use} or a folder name"
    register(HELD_FORMAT)
    assert said(OutputError, tmp_path / "net.ggml", small()) == f"{use}, .held or a folder name"
    assert not list(tmp_path.iterdir())


def test_what_is_written_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n")
    assert said(SourceError, tmp_path / "net.py") == (
        "net.py is of the format 'python', which is written and not read; files are read from "
        ".pt, .safetensors, .onnx, .ticket, .pt2, .gguf"
    )


# -- formats of others -------------------------------------------------------------------------------------------------


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["net.held", "net.HLD"])
@pytest.mark.parametrize("way", ["register", "entry point"])
def test_a_registered_format_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    if way == "register":
        register(HELD_FORMAT)
        register(HELD_FORMAT)  # twice is once
    else:
        offer(monkeypatch, f"{HERE}:HELD_FORMAT")
    assert registered() == (*OWN, HELD_FORMAT)
    graph, path = small(), tmp_path / name
    assert eir.save(graph, path) == [path]
    assert [each.name for each in tmp_path.iterdir()] == [name]
    back = eir.load(path)
    assert back.masks().keys() == graph.masks().keys()
    for key, tensor in graph.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor)
    out = tmp_path / "deep.held"
    done = CliRunner().invoke(elastic_ir, ["stretch", str(path), "--to-stages", "3,3,3", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert [len(stage) for stage in eir.load(out).stages] == [3, 3, 3]
    done = CliRunner().invoke(elastic_ir, ["stretch", str(path), "--to-stages", "3,3,3"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / f"net-depth20{path.suffix}").is_file()  # a source's own suffix is kept
    shutil.copy(out, tmp_path / "copied")
    assert [len(stage) for stage in eir.load(tmp_path / "copied").stages] == [3, 3, 3]


def test_pairs_of_pruned_modules_and_architectures(tmp_path: Path) -> None:
    register(HELD_FORMAT)
    eir.save(small(), tmp_path / "net.held")
    ((key, stored),) = HELD.items()
    name = "layer1.0.conv1.weight"
    tensors = {(f"{name}_orig" if each == name else each): data for each, data in stored.tensors.items()}
    HELD[key] = Stored({**tensors, f"{name}_mask": stored.tensors[name]})  # its values are no mask's
    assert f"the mask of {name!r} holds" in said(ElasticError, tmp_path / "net.held")
    HELD[key] = Stored(stored.tensors, stored.masks)
    arch = cifar_resnet(14, width=4)
    assert eir.load(tmp_path / "net.held", arch=arch).masks().keys() == {name}
    assert [len(stage) for stage in eir.load(tmp_path / "net.held").stages] == [2, 2, 2]
    with pytest.raises(SourceError, match="holds one network, and key='ema' chooses"):
        eir.load(tmp_path / "net.held", key="ema")


def test_masks_in_a_file_of_that_format(tmp_path: Path) -> None:
    register(HELD_FORMAT)
    graph = small()
    eir.save(graph, tmp_path / "ticket.held")
    torch.save(graph.state_dict(masked=False), tmp_path / "dense.pt")
    name = "layer1.0.conv1.weight"
    for held in (HELD[b"HELD0"], Stored({f"{name}_mask": TorchData(graph.masks()[name])})):
        HELD[b"HELD0"] = held
        masked = eir.load(tmp_path / "dense.pt", masks=tmp_path / "ticket.held")
        assert masked.masks().keys() == {name}
        assert torch.equal(masked.state_dict()[name], graph.state_dict()[name])


@pytest.mark.parametrize(
    ("writer", "what"),
    [
        ("write_without_masks", "net.held does not hold the mask of layer1.0.conv1.weight"),
        ("write_half", "net.held does not hold what was planned, conv1.weight for example"),
        ("fails", "net.held cannot be written as 'held': ValueError: no luck today"),
        ("nowhere", f"the format 'held' names '{HERE}:nowhere', which cannot be imported"),
    ],
)
def test_a_writer_that_goes_wrong_leaves_what_was_there(tmp_path: Path, writer: str, what: str) -> None:
    register(Format("held", (".held",), f"{HERE}:read_held", f"{HERE}:{writer}"))
    (tmp_path / "net.held").write_bytes(b"before")
    assert what in said(EmitError, tmp_path / "net.held", small())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_predicate_that_goes_wrong(tmp_path: Path) -> None:
    register(Format("held", (".held",), f"{HERE}:read_held", recognises=lambda head: head[99] == 1))
    (tmp_path / "net.any").write_bytes(b"GGML")
    assert said(SourceError, tmp_path / "net.any") == (
        f"whether {tmp_path / 'net.any'} is of the format 'held' could not be found out: IndexError: index out of range"
    )


def test_a_reader_that_goes_wrong_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.held").write_bytes(b"any")
    register(Format("held", (".held",), f"{HERE}:fails", None))
    line = said(SourceError, tmp_path / "net.held")
    assert line == f"{tmp_path / 'net.held'} cannot be read as 'held': ValueError: no luck today"
    done = CliRunner().invoke(elastic_ir, ["inspect", str(tmp_path / "net.held")])
    assert (done.exit_code, done.output) == (1, f"error: {line}\n")
    assert said(OutputError, tmp_path / "net.held", small()).startswith(
        "net.held: the format 'held' is read and not"
    )
    assert kept_suffix(Path("net.held")) == ".pt"


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (
            Format("mine", (".pt",)),
            "the format 'mine' (register()) claims .pt, which the format 'pytorch' has already",
        ),
        (Format("mine", (".x", ".onnx")), "claims .onnx, which the format 'onnx' has already"),
        (Format("mine", (".hld",)), "claims .hld, which the format 'held' has already"),
        (Format("ticket", (".t",)), "two formats are named 'ticket': register() may not replace the one"),
        (Format("mine", ()), "has the suffixes (); give a tuple of lower-case ones with one dot"),
        (Format("mine", (".NPZ",)), "has the suffixes ('.NPZ',); give"),
        (Format("mine", ("npz",)), "has the suffixes ('npz',); give"),
        (Format("mine", (".tar.gz",)), "has the suffixes ('.tar.gz',); give"),
    ],
)
def test_what_may_not_be_registered(form: Format, what: str) -> None:
    register(HELD_FORMAT)
    with pytest.raises(SourceError) as caught:
        register(form)
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert registered() == (*OWN, HELD_FORMAT)


TAKEN = Format("taken", (".ticket",))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("no_such_package:FORM", "('no_such_package:FORM' cannot"),
        (f"{HERE}:nothing", "has no attribute 'nothing'"),
        (f"{HERE}:fails", f"{HERE}:fails is a function, not a Format; see docs/writing-formats.md"),
        (f"{HERE}:TAKEN", f"the format 'taken' ({HERE}:TAKEN) claims .ticket, which the format 'ticket' has"),
    ],
)
def test_a_plug_in_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, what: str
) -> None:
    """It is named where it may be what is wanted; files of our own formats do not wait for it."""
    offer(monkeypatch, value)
    eir.save(small(), tmp_path / "net.pt")
    assert eir.load(tmp_path / "net.pt").depth == 14
    (tmp_path / "net.held").touch()
    line = said(SourceError, tmp_path / "net.held")
    if value.startswith("no_such"):
        what = (
            "the format 'held' (no_such_package:FORM) cannot be imported: No module named 'no_such_package'"
        )
    assert what in line
    assert what in said(SourceError, tmp_path / "net.held", small())
