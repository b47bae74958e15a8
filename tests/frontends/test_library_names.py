"""Names of networks, read from source text: they are those that the libraries themselves list."""

from __future__ import annotations

import subprocess
import sys

import pytest

from elastic_ir.frontends.library_names import network_names


def test_they_are_those_of_the_libraries() -> None:
    timm = pytest.importorskip("timm")
    assert network_names("timm") == set(timm.list_models())
    models = pytest.importorskip("torchvision.models")
    assert network_names("torchvision") == set(models.list_models())
    assert network_names("nonesuch_library") == frozenset()


def test_they_are_read_without_torch() -> None:
    code = (
        "import sys; from elastic_ir.frontends.library_names import network_names; "
        "print(len(network_names('timm')) > 0, 'torch' in sys.modules)"
    )
    pytest.importorskip("timm")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
