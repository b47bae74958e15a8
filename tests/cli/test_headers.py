"""``inspect`` and ``diff`` of checkpoint folders by their headers: what is shown, and that no network is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.formats.torch_zip import places_of
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints.folders import State, config, llama, run, write

INSPECT = """\
network:     llama
source:      llama
class:       LlamaForCausalLM
layers:      4 (num_hidden_layers)
hidden size: 8
heads:       2; 1 for keys and values
tensors:     39 of float16
bytes:       6,288 in 3 files
found from:  names
depth:       4 layers
parameters:  3,144
sparsity:    0.0 %

stage         blocks  free  layers  depth  parameters
stem               -     -       -      -         256
model.layers       4     4       ?      ?       2,624
head               -     -       -      -         264
total              4     4       ?      ?       3,144
"""
DIFF = """\
                    llama     deep
depth               4 layers  6 layers
parameters          3,144     4,456
sparsity            0.0 %     0.0 %
stage model.layers  4         6

deep: model.layers 4-5 are 2-3 of llama
18 only in deep:
  model.layers.4.input_layernorm.weight
"""


def good(*arguments: str) -> str:
    result = CliRunner().invoke(elastic_ir, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a Llama, and what a stretch has made of it."""
    write(tmp_path / "llama", llama(), config(4, num_key_value_heads=1), shards=3)
    monkeypatch.chdir(tmp_path)
    assert run("stretch", "llama", "--plan", "0-3,2,3", "-o", "deep").exit_code == 0
    return tmp_path


def test_inspect_of_a_folder(here: Path) -> None:
    assert good("inspect", "llama") == INSPECT
    file = json.loads(good("inspect", "llama", "--json"))["file"]
    assert (file["class"], file["heads"]) == ("LlamaForCausalLM", "2; 1 for keys and values")


def test_what_a_configuration_does_not_state_is_left_out(tmp_path: Path) -> None:
    tables = {
        "model_type": "clip",
        "text_config": {"hidden_size": 8, "num_hidden_layers": 2},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 3},
    }
    state: State = {
        f"{tower}.layers.{at}.{name}.weight": np.zeros((width, width), np.float32)
        for tower, count, width in (("text_model", 2, 8), ("vision_model", 3, 16))
        for at in range(count)
        for name in ("fc1", "fc2")
    }
    lines = good("inspect", str(write(tmp_path / "clip", state, tables))).splitlines()
    facts = dict(line.split(":", 1) for line in lines[: lines.index("")])
    assert facts["class"].strip() == "clip"
    assert facts["hidden size"].strip() == "8 (text_config.hidden_size), 16 (vision_config.hidden_size)"
    assert facts["layers"].strip() == (
        "text_model.layers 2 (text_config.num_hidden_layers), vision_model.layers 3 (vision_config.num_hidden_layers)"
    )
    assert "heads" not in facts


def test_diff_lists_layers_by_the_record(here: Path) -> None:
    assert good("diff", "llama", "deep").startswith(DIFF)
    assert good("diff", "llama", "deep").endswith("\n39 tensors are equal\n")
    found = json.loads(good("diff", "deep", "llama", "--json"))
    assert found["lineage"] == [
        {
            "of": "a",
            "source": "llama",
            "is_other": True,
            "stages": {"model.layers": [["0-3", "0-3"], ["4-5", "2-3"]]},
        }
    ]
    assert (found["same"], found["values_compared"], found["equal_tensors"]) == (False, True, 39)


def test_headers_alone_do_not_say_that_values_are_equal(here: Path) -> None:
    state = load_file(here / "deep" / "model.safetensors")
    state["model.norm.weight"] += np.float16(1)
    (here / "tuned").mkdir()
    (here / "tuned" / "config.json").write_text((here / "deep" / "config.json").read_text())
    save_file(state, here / "tuned" / "model.safetensors")
    text = good("diff", "deep", "tuned", "--headers")
    assert text.endswith("57 tensors have one name, shape and type; no values were compared\n")
    found = json.loads(good("diff", "deep", "tuned", "--headers", "--json"))
    assert (found["same"], found["equal_tensors"], found["alike"]) == (None, None, 57)
    assert json.loads(good("diff", "deep", "tuned", "--json"))["tensors_differ"] == ["model.norm.weight"]
    assert json.loads(good("diff", "llama", "deep", "--headers", "--json"))["same"] is False


def test_a_damaged_plan_is_an_error(here: Path) -> None:
    record = here / "deep" / "elastic_ir.json"
    record.write_text(record.read_text().replace('"0-3,2-3"', '"0-3,x"'))
    result = CliRunner().invoke(elastic_ir, ["diff", "llama", "deep"])
    assert result.exit_code == 1
    assert result.output == "error: the record of deep is damaged: 'x' is not a part of a plan\n"


def test_diff_of_folders_imports_no_torch(here: Path) -> None:
    code = (
        "import sys\nfrom elastic_ir.cli.app import elastic_ir as run\n"
        "run(['diff', 'llama', 'deep'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=here)


def test_diff_of_files_lists_blocks_by_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    eir.save(eir.trace(cifar_resnet(14, width=4)), "m.pt", check=False)
    eir.save(eir.stretch(eir.load("m.pt"), to_stages=(3, 2, 2)), "d.pt", check=False)
    assert "\nd.pt: layer1 2 is 1 of m.pt\n" in good("diff", "m.pt", "d.pt")


@pytest.mark.slow
def test_headers_of_two_pt_files_are_compared_without_torch(tmp_path: Path) -> None:
    """Bare, and with the graph that ElasticIR writes; no tensor is read, so a checksum that is wrong is no matter."""
    import torch

    graph = eir.trace(cifar_resnet(20))
    eir.save(graph, tmp_path / "ours.pt", check=False)
    eir.save(eir.stretch(graph, to_depth=32), tmp_path / "deep.pt", check=False)
    torch.save(torch.load(tmp_path / "ours.pt"), tmp_path / "bare.pt")
    with (tmp_path / "bare.pt").open("r+b") as file:
        file.seek(places_of(file, "bare.pt")["data/0"].offset)
        file.write(b"\1\2\3\4")
    for a, b, same in (("ours", "deep", False), ("ours", "bare", None)):
        command = ["diff", f"{a}.pt", f"{b}.pt", "--headers", "--json"]
        code = f"""
import sys
from elastic_ir.cli.app import elastic_ir
elastic_ir.main({command!r}, standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["same"] is same
