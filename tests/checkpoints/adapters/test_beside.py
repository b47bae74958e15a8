"""Adapters in a model's folder: they follow with its layers, name the new folder as their base, and come back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from tests.checkpoints.adapters.test_follow import ROOT, adapter, check_layers, followed, lora, source
from tests.checkpoints.folders import config, llama, run, write


def test_a_folder_with_both_carries_both(tmp_path: Path) -> None:
    before, out = lora(range(4)), tmp_path / "out"
    whole = adapter(source(tmp_path), before)
    adapter(whole / "speech-lora", lora([1, 3]), layers_to_transform=[1, 3])
    result = run("stretch", whole, "--plan", "0-3,3,1", "--scale", "down_proj=0.5", "-o", out)
    assert result.exit_code == 0, result.output
    assert (
        f"adapter:    adapter_model.safetensors follows (LORA, 24 tensors, in 6 layers), with {out}"
        in result.output
    )
    assert "left out" not in result.output
    made, settings = followed(out)
    for at in (4, 5):
        name = f"{ROOT}model.layers.{at}.mlp.down_proj.lora_B.weight"
        assert np.array_equal(
            made[name], before[name.replace(str(at), "3" if at == 4 else "1")] * np.float32(0.5)
        )
    assert settings["base_model_name_or_path"] == str(out)
    _, inner = followed(out / "speech-lora")
    assert inner["layers_to_transform"] == [1, 3, 4, 5] and inner["base_model_name_or_path"] == str(out)
    assert run("verify", out).exit_code == 0
    made[f"{ROOT}model.layers.4.mlp.down_proj.lora_B.weight"][0] += 1
    save_file(made, tmp_path / "damaged")
    kept = (out / "adapter_model.safetensors").rename(tmp_path / "kept")
    (tmp_path / "damaged").rename(out / "adapter_model.safetensors")
    (out / "speech-lora" / "adapter_config.json").unlink()
    found = eir.verify_checkpoint(out, check=False)
    assert {(one.tensor, one.what) for one in found.differences} == {
        (f"{ROOT}model.layers.4.mlp.down_proj.lora_B.weight", "differs"),
        ("speech-lora/adapter_config.json", "is missing"),
    }
    kept.rename(out / "adapter_model.safetensors")
    assert run("undo", out, "-o", tmp_path / "back", "--no-check").exit_code == 0
    again, settings = followed(tmp_path / "back")
    check_layers(again, before, range(4))
    assert settings == {
        **json.loads((whole / "adapter_config.json").read_text()), "base_model_name_or_path": str(tmp_path / "back")
    }  # fmt: skip


def test_one_that_cannot_follow_is_left_out_whole(tmp_path: Path) -> None:
    """Its settings alone would have ``from_pretrained`` look for weights that are not there."""
    whole, out = write(tmp_path / "source", llama(3), config(3)), tmp_path / "out"
    (whole / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    save_file({"prompt_embeddings": np.ones((2, 6))}, whole / "adapter_model.safetensors")
    result = run("stretch", whole, "--to-units", "4", "-o", out)
    assert (
        "left out:   adapter_config.json and its tensors: source is an adapter of the sort PREFIX"
        in result.output
    )
    assert not list(out.glob("adapter*"))


def test_from_python_and_without_a_change(tmp_path: Path) -> None:
    whole, out = adapter(source(tmp_path), lora(range(4))), tmp_path / "out"
    eir.save(eir.load(whole, headers_only=True), out, check=False)
    assert all(
        np.array_equal(a, lora(range(4))[n]) for n, a in load_file(out / "adapter_model.safetensors").items()
    )


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    whole, out = adapter(source(tmp_path), lora(range(4))), tmp_path / "out"
    (whole / "adapter_model.safetensors").rename(tmp_path / "aside")
    (whole / "adapter_model.safetensors").symlink_to(tmp_path / "aside")
    result = run("stretch", whole, "--to-units", "6", "-o", out)
    assert "left out:   adapter_config.json and its tensors: " in result.output
    assert "is a symbolic link out of the folder" in result.output and not list(out.glob("adapter*"))


def test_behind_a_url(tmp_path: Path) -> None:
    fsspec, url = pytest.importorskip("fsspec"), "memory://bucket/adapted"
    whole = adapter(source(tmp_path), lora(range(4)))
    result = run("stretch", whole, "--to-units", "6", "-o", url)
    assert result.exit_code == 0, result.output
    with fsspec.open(f"{url}/adapter_config.json") as file:
        assert json.load(file)["base_model_name_or_path"] == url
    signed = "memory://me:secret@bucket/adapted"
    assert run("stretch", whole, "--to-units", "6", "-o", signed).exit_code == 0
    with fsspec.open(f"{signed}/adapter_config.json") as file:
        assert json.load(file)["base_model_name_or_path"] == url
    back = run("squeeze", url, "--to-units", "4", "-o", tmp_path / "back")
    assert back.exit_code == 0, back.output
    check_layers(followed(tmp_path / "back")[0], lora(range(4)), range(4))


def test_one_with_a_record_of_its_own_gets_a_step_more(tmp_path: Path) -> None:
    base = source(tmp_path)
    out = tmp_path / "deeper"
    assert run("stretch", base, "--plan", "0-3,2-3", "-o", out).exit_code == 0
    one = adapter(tmp_path / "one", lora(range(4)))
    eir.follow(one, out, out / "mine")
    assert run("squeeze", out, "--drop", "4,5", "-o", tmp_path / "back").exit_code == 0
    checked = run("verify", tmp_path / "back" / "mine", "--against", out / "mine")
    assert checked.exit_code == 0, checked.output
