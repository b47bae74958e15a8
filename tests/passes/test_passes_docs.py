"""The Python of docs/passes.md runs as it stands, and its commands are those that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from click.testing import CliRunner

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.passes import registered
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet
from tests.passes.digits import images

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "passes.md").read_text()


def test_the_python_runs(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_run(tmp_path: Path) -> None:
    model = cifar_resnet(8, width=4)
    x, y = images(64)
    graph = eir.trace(model, (x[:2],), masks=magnitude_masks(model, 0.8))
    eir.save(graph, tmp_path / "ticket.pt")
    np.savez(tmp_path / "digits.npz", inputs=x.numpy(), labels=y.numpy())
    eir.save(eir.trace(cifar_resnet(20, width=4), (x[:2],)), tmp_path / "model.pt")
    np.save(tmp_path / "inputs.npy", x.numpy())
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    commands = re.findall(r"^\$ elastic-ir (apply .*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        words = [str(tmp_path / word) if word.endswith((".pt", ".onnx", ".yaml")) else word for word in words]
        words = [
            word.replace("data=digits.npz", f"data='{tmp_path / 'digits.npz'}' steps=2").replace(
                "data=inputs.npy", f"data='{tmp_path / 'inputs.npy'}'"
            )
            for word in words
        ]
        done = CliRunner().invoke(elastic_ir, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    plain = onnx.load(tmp_path / "plain.onnx")
    names = [item.name for item in plain.graph.node] + [item.name for item in plain.graph.initializer]
    assert not any("ghost" in name for name in names)
    assert torch.load(tmp_path / "young.pt", weights_only=True).keys() == model.state_dict().keys()
    made = eir.load(tmp_path / "young-32.pt").history.pipeline  # what the recipe was, as text
    assert f"`{','.join(made)}`" in PAGE


def test_passes_that_it_names_are_there() -> None:
    for name in ("ghost-skips", "ghost-softness", "remove-ghosts", "layerwise-rescale"):
        assert f"`{name}`" in PAGE and name in registered()
