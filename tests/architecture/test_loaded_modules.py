"""How much of the project a command loads: what it does not need is imported where it is used.

A module more at the top of a file is a module more in every command that reaches it, and one more that a reader has to
enter who follows the command. Where a figure here is passed, import late what only some networks or options need.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import elastic_ir as eir
from elastic_ir.zoo import cifar_resnet

CODE = """
import sys
from elastic_ir.cli.app import elastic_ir as run
run(sys.argv[1:], standalone_mode=False)
names = [name for name in sys.modules if name.partition(".")[0] == "elastic_ir"]
print(f"loaded: {' '.join(sorted(names))}")
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network as torch saves it, and as ONNX."""
    import torch

    folder = tmp_path_factory.mktemp("sources")
    torch.save(cifar_resnet(20, width=4), folder / "own.pt")
    eir.save(eir.load(folder / "own.pt"), folder / "m.onnx", check=False)
    return folder


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("command", "most"),
    [
        (["stretch", "own.pt", "--to-depth", "56", "-o", "deeper.pt"], 88),
        (["apply", "m.onnx", "--passes", "compact", "-o", "compact.onnx"], 90),
    ],
    ids=["stretch", "apply"],
)
def test_a_command_loads_few_modules(command: list[str], most: int, sources: Path) -> None:
    """Packages and the networks' own file count too."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, *command],
        cwd=sources, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (sources / command[-1]).is_file()
    loaded = result.stdout.rpartition("loaded: ")[2].split()
    assert "elastic_ir.passes" in loaded
    assert len(loaded) <= most, " ".join(loaded)
