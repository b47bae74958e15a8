"""Pickles that try to run something, or hold what is not trusted: refused, with nothing run; and how to trust."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elastic_ir.errors import SourceError, UntrustedError
from elastic_ir.formats.pickles.allow_list import class_allowed, resolve_class
from elastic_ir.frontends.torch_file import read_torch_file


class Calls:
    """Pickles as a call of a function: the usual exploit."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def crafted(path: Path, program: bytes) -> Path:
    """A file as torch.save writes it, with a pickle of our own in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return path


def named(module: str, name: str) -> bytes:
    """Protocol 4's way to name an object, which follows dots."""
    parts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"".join(parts) + b"\x93"


# -- pickles that must not run -----------------------------------------------------------------------------------------


def test_the_exploit_through_an_allowed_package_does_not_run(tmp_path: Path) -> None:
    """Whole packages of functions allowed, timm's loader would read a second pickle unsafely."""
    from timm.models._helpers import load_state_dict

    marker, payload, path = tmp_path / "marker", tmp_path / "payload.pt", tmp_path / "model.pt"
    torch.save(Calls(os.system, f"touch {marker}"), payload)
    torch.save(Calls(load_state_dict, str(payload), True, "cpu", False), path)
    with pytest.raises(UntrustedError) as caught:
        read_torch_file(path)
    assert not marker.exists()
    assert str(caught.value) == (
        "model.pt: it names timm.models._helpers.load_state_dict, which a pickle may not hold; nothing of it was run. "
        "Only modules, enums and configurations of timm are rebuilt; save a state dict"
    )
    for trust in (["timm"], ["timm", "os", "posix", "builtins"]):  # functions stay out, whatever is trusted
        with pytest.raises(UntrustedError):
            read_torch_file(path, trust)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - that the exploit is a real one
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_shell_command_does_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    content = {"weight": torch.zeros(2), "bad": Calls(os.system, f"touch {marker}")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for trust in ([], ["posix", "os"]):
        with pytest.raises(UntrustedError, match=r"posix\.system.*nothing of it was run"):
            read_torch_file(path, trust)
    assert not marker.exists()


def test_what_stands_before_the_header_of_an_old_file_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {marker}"), 2))
    with pytest.raises(UntrustedError, match="nothing of it was run"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn.modules.module", "warnings"),
        ("torch.nn.modules.module", "warnings.sys.modules"),
        ("torch.nn.modules.module", "Module.__init__"),
        ("torch.nn.modules.module", "Module.__init__.__globals__"),
        ("torch.nn.modules.linear", "Linear.forward"),
        ("torch.nn.modules.linear", "Linear.__class__"),
        ("torch.nn.modules.linear", "Linear.__subclasses__"),
        ("torch.nn.modules.module", "OrderedDict"),
        ("torch.nn.functional", "importlib"),
        ("torch.nn", "factory_kwargs"),
        ("torch", "nn.modules.module.warnings.sys.modules"),
        ("torch", "load"),
        ("torch", "relu.__self__"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.hub", "load"),
        ("torch.fx.graph_module", "GraphModule"),
        ("torch.fx.graph_module", "reduce_graph_module"),
        ("torch.jit._script", "ScriptModule"),
        ("torch.distributed.nn.api.remote_module", "RemoteModule"),
        ("torchvision.models.feature_extraction", "DualGraphModule"),
        ("timm.models._helpers", "os.system"),
        ("timm.layers.format", "Format.__class__"),
        ("transformers", "pipeline"),
        ("elastic_ir", "load"),
        ("builtins", "eval"),
        ("builtins", "__import__"),
        ("functools", "reduce"),
        ("operator", "methodcaller"),
        ("copyreg", "_reconstructor"),
        ("subprocess", "Popen"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, module: str, name: str) -> None:
    path = crafted(tmp_path / "a.pt", b"\x80\x04" + named(module, name) + b".")
    with pytest.raises(UntrustedError, match="nothing of it was run"):
        read_torch_file(path)


LINEAR = named("torch.nn.modules.linear", "Linear")
PARTIAL = named("functools", "partial")
RELU = named("torch.nn.functional", "relu")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (LINEAR + b"K\x02K\x02\x86R.", "calls torch.nn.modules.linear.Linear"),
        (RELU + b"K\x01\x85R.", "calls torch.nn.functional.relu"),
        (named("torch.nn.parallel.data_parallel", "DataParallel") + b")R.", "calls torch.nn.parallel"),
        (LINEAR + b"K\x01\x85\x81.", "makes an instance with arguments"),
        (LINEAR + b"}\x8c\x07forwardNsb.", "sets the state of a type"),
        (LINEAR + b")\x81(]}tb.", "sets the state of a Linear"),
        (LINEAR + b")\x81\x8c\x01aNs.", "puts elements into a Linear"),
        (LINEAR + b")\x81K\x01a.", "puts elements into a Linear"),
        (LINEAR + b")\x81(K\x01e.", "puts elements into a Linear"),
        (LINEAR + b")\x81(K\x01\x90.", "puts elements into a Linear"),
        (
            named("builtins", "getattr") + LINEAR + b"\x8c\x07forward\x86R.",
            "torch.nn.modules.linear.Linear.forward",
        ),
        (
            PARTIAL + named("torch.nn.parallel.data_parallel", "DataParallel") + b"\x85R.",
            "calls functools.partial",
        ),
        (PARTIAL + PARTIAL + b"\x85R.", "calls functools.partial"),
        (PARTIAL + LINEAR + b"\x85R(" + RELU + b")}Ntb.", "changes what a partial calls"),
        (
            named("torch._tensor", "_rebuild_from_type_v2") + b"(" + RELU + b"N)}tR.",
            "calls torch._tensor._rebuild",
        ),
        (named("collections", "defaultdict") + LINEAR + b"\x85R.", "calls collections.defaultdict"),
        (b"(i" + b"torch.nn\nLinear\n.", "an instruction that torch.save does not write"),
        (LINEAR + b")}\x92.", "an instruction that torch.save does not write"),
    ],
)
def test_unusual_instructions_are_refused(tmp_path: Path, program: bytes, said: str) -> None:
    path = crafted(tmp_path / "a.pt", b"\x80\x04" + program)
    with pytest.raises(UntrustedError) as caught:
        read_torch_file(path)
    assert said in str(caught.value)
    assert "nothing of it was run" in str(caught.value)


def test_no_constructor_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    monkeypatch.setattr(nn.Linear, "__init__", lambda *_: pytest.fail("a constructor ran"))
    assert isinstance(read_torch_file(tmp_path / "a.pt"), nn.Linear)


# -- packages of the user ----------------------------------------------------------------------------------------------

LIBRARY = """
from pathlib import Path
from torch import nn
(Path(__file__).parent / "imported").touch()
class Net(nn.Module):
    class Inner(nn.Module):
        pass
    def __init__(self):
        super().__init__()
        self.inner = self.Inner()
def function(): ...
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A module whose class this process has never imported, saved by another process."""
    (tmp_path / "foreign_nets.py").write_text(LIBRARY)
    code = "import torch, foreign_nets as f; torch.save(f.Net(), 'a.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    (tmp_path / "imported").unlink()
    return tmp_path / "a.pt"


@pytest.mark.slow
def test_a_package_must_be_trusted(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(foreign.parent)
    with pytest.raises(UntrustedError) as caught:
        read_torch_file(foreign)
    assert str(caught.value) == (
        "a.pt: it names foreign_nets.Net, which a pickle may not hold; nothing of it was run. If you trust the package "
        'foreign_nets, pass --trust foreign_nets (in Python: trust=["foreign_nets"]); it may then hold classes of it. '
        "Else ask for a state dict"
    )
    assert not (foreign.parent / "imported").exists(), "not even imported"
    try:
        read = read_torch_file(foreign, ["foreign_nets"])
        assert type(read).__name__ == "Net"
        assert type(read.inner).__qualname__ == "Net.Inner"
        assert resolve_class("foreign_nets:Net.Inner", ["foreign_nets"]) is type(read.inner)
    finally:
        sys.modules.pop("foreign_nets", None)


@pytest.mark.slow
def test_a_trusted_package_that_is_not_installed(foreign: Path) -> None:
    with pytest.raises(UntrustedError, match="foreign_nets is not installed here either"):
        read_torch_file(foreign)
    with pytest.raises(SourceError) as caught:
        read_torch_file(foreign, ["foreign_nets"])
    assert str(caught.value) == (
        "a.pt: the class Net of foreign_nets cannot be imported here (No module named 'foreign_nets'): install "
        "foreign_nets, or run where foreign_nets lies, or save a state dict (torch.save(model.state_dict(), NAME))"
    )


def test_a_class_of_a_script(tmp_path: Path) -> None:
    path = crafted(tmp_path / "a.pt", b"\x80\x04" + named("__main__", "NoSuchNet") + b")\x81.")
    with pytest.raises(UntrustedError, match="--trust __main__"):
        read_torch_file(path)
    with pytest.raises(
        SourceError, match="NoSuchNet of __main__ cannot be imported here: it was defined in the script"
    ):
        read_torch_file(path, ["__main__"])


def test_a_class_that_the_installed_version_lacks(tmp_path: Path) -> None:
    path = crafted(tmp_path / "a.pt", b"\x80\x04" + named("timm.layers", "NoSuchLayer") + b")\x81.")
    with pytest.raises(SourceError, match="the installed timm has no such class; install the version"):
        read_torch_file(path)


def test_garbage_inside_a_zip(tmp_path: Path) -> None:
    for program in (b"", b"\x80\x02", b"nonsense", b"\x80\x04K\x01K\x02R.", b"\x80\x04h\x63."):
        with pytest.raises(SourceError, match=r"a\.pt"):
            read_torch_file(crafted(tmp_path / "a.pt", program))


def test_class_allowed_and_resolve_class() -> None:
    assert class_allowed(nn.Linear)
    assert class_allowed(argparse.Namespace)
    assert not class_allowed(Calls)
    assert class_allowed(Calls, [Calls.__module__])
    assert not class_allowed(torch.fx.GraphModule, ["torch"])
    assert not class_allowed(subprocess.Popen)
    assert resolve_class("torch.nn.modules.linear:Linear") is nn.Linear
    with pytest.raises(SourceError, match=r"is not a torch\.nn\.Module"):
        resolve_class("timm.layers.format:Format")
    with pytest.raises(UntrustedError, match="nothing of it was run"):
        resolve_class("subprocess:Popen")
    with pytest.raises(SourceError, match="is not the name of a class"):
        resolve_class("torch.nn.modules.linear.Linear")
