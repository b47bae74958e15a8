"""Which names in a file lead to a class or a function: those that define networks, and a trusted package's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elastic_ir.errors import EmitError, SourceError, UntrustedError
from elastic_ir.formats.pickles.allow_list import class_allowed, resolve_class
from elastic_ir.frontends.torch_file import read_torch_file
from elastic_ir.ir.functions import resolve_function


def makes(path: Path, module: str, name: str) -> Path:
    """A file as torch.save writes it, whose pickle makes an empty instance of a class."""
    parts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + b"".join(parts) + b"\x93)\x81.")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return path


def test_trust_covers_that_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package whose name begins so, nothing that it imports from elsewhere, no function, no program of it."""
    home = tmp_path / "home"
    (home / "foo").mkdir(parents=True)
    (home / "foo" / "__init__.py").write_text(
        "import os, subprocess\nfrom subprocess import Popen\nfrom torch import fx\n"
        "class Own: pass\n"
        "def function(): ...\n"
    )
    (home / "foo" / "__main__.py").write_text("raise SystemExit('a program ran')")
    (home / "foobar.py").write_text("raise SystemExit('another package was imported')")
    monkeypatch.syspath_prepend(home)
    try:
        made = read_torch_file(makes(tmp_path / "a.pt", "foo", "Own"), ["foo"])
        assert type(made).__module__ == "foo"
        for module, name in (
            ("foobar", "Own"), ("foo", "Popen"), ("foo", "subprocess.Popen"), ("foo", "os.system"), ("foo", "function"),
            ("foo", "fx.GraphModule"), ("foo.__main__", "Own"), ("foo", "Own.__class__"), ("subprocess", "Popen"),
        ):  # fmt: skip
            path = makes(tmp_path / "b.pt", module, name)
            with pytest.raises(UntrustedError, match="nothing of it was run"):
                read_torch_file(path, ["foo"])
        for trust in (["fo"], ["foo.inner"], ["foobar"], [""], ["."], ["*"]):
            with pytest.raises(UntrustedError, match="--trust foo"):
                read_torch_file(tmp_path / "a.pt", trust)
    finally:
        sys.modules.pop("foo", None)


PROGRAMS = [
    "elastic_ir.cli.__main__", "elastic_ir.cli.app", "elastic_ir.training.studies.job_kinds",
    "transformers.commands.chat", "transformers.models.bert.convert_bert_original_tf_checkpoint_to_pytorch",
    "transformers.trainer", "timm.utils.model", "torchvision.datasets.utils", "torchvision.io", "torch.utils.benchmark",
    "torch.distributed.run", "torch.testing._internal.common_utils", "torch.nn.__main__", "timm.models.__main__",
    "transformers.models.__main__",
]  # fmt: skip


@pytest.mark.parametrize("module", PROGRAMS)
def test_modules_that_define_no_networks_are_not_imported(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not by way of a description."""
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    monkeypatch.setattr(importlib.util, "find_spec", imported.append)
    for name in (f"{module}:Net", f"{module}:main"):
        with pytest.raises(UntrustedError, match="nothing of it was run"):
            resolve_class(name)
    assert module not in imported


NAMES = st.sampled_from(
    ["torch", "nn", "modules", "os", "system", "warnings", "sys", "timm", "layers", "transformers", "models", "bert",
     "modeling_bert", "BertModel", "elastic_ir", "cli", "__main__", "zoo", "__class__", "__globals__", "Linear",
     "linear",
     "load", "<locals>", "", "Module", "functional", "subprocess", "Popen", "importlib", "import_module"]
)  # fmt: skip


@given(st.lists(NAMES, min_size=1, max_size=6), st.integers(0, 6))
def test_any_name_leads_to_a_module_class_or_is_refused(parts: list[str], colon: int) -> None:
    name = ".".join(parts[:colon]) + ":" * (0 < colon < len(parts)) + ".".join(parts[colon:])
    before = set(sys.modules)
    try:
        found = resolve_class(name)
    except SourceError:
        pass
    else:
        assert issubclass(found, nn.Module)
        assert class_allowed(found)
    new = {module.partition(".")[0] for module in set(sys.modules) - before}
    assert not new & {"elastic_ir", "subprocess"}


@pytest.mark.parametrize(
    "name",
    ["torch.__setattr__", "torch.__getattribute__", "torch.__class__", "torch._C._nn.__setattr__", "math.__setattr__",
     "math.__loader__", "torch.nn.functional.__getattr__", "torch.nn.functional.handle_torch_function", "torch.load",
     "torch.save", "torch.from_file", "torch.compile", "torch.hub.load", "operator.attrgetter", "operator.methodcaller",
     "os.system", "builtins.eval", "builtins.setattr", "torch.nn.functional.warnings.warn", "torch.Tensor",
     "torchvision.models.resnet50", "subprocess.Popen", "", ".", "torch.", "torch.nn.functional"],
)  # fmt: skip
def test_functions_that_a_graph_may_not_name(name: str) -> None:
    with pytest.raises(EmitError, match="not among the functions that a file may name"):
        resolve_function(name)
