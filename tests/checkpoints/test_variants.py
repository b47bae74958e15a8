"""Weights of a variant (``model.fp16.safetensors``): read, written under the same names, chosen among several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.errors import SourceError
from elastic_ir.formats.model_folder import LAYOUTS, chosen_layout, is_checkpoint, layouts_among
from tests.checkpoints.folders import config, llama, run, write


def variant(folder: Path, name: str = "fp16", layers: int = 3, shards: int = 1, seed: int = 0) -> Path:
    """A folder with weights of a variant, as ``save_pretrained(variant=...)`` names them."""
    state = llama(layers, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    if shards == 1:
        save_file(state, folder / f"model.{name}.safetensors", {"format": "pt"})
        return folder
    places = {
        key: f"model.{name}-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(state)
    }
    for file in set(places.values()):
        save_file({key: state[key] for key in state if places[key] == file}, folder / file, {"format": "pt"})
    (folder / f"model.safetensors.index.{name}.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_one_variant_becomes_another_of_it(tmp_path: Path, shards: int) -> None:
    source, out = variant(tmp_path / "source", shards=shards), tmp_path / "out"
    result = run("stretch", source, "--to-units", "5", "-o", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "elastic_ir.json", "model.fp16.safetensors"
    }  # fmt: skip
    held, before = load_file(out / "model.fp16.safetensors"), llama(3)
    assert len(held) == 3 + 5 * 9
    for at, layer in enumerate([0, 1, 2, 0, 1]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert np.array_equal(held[name.format(at)], before[name.format(layer)])
    assert run("verify", out).exit_code == 0
    back = run("undo", out, "-o", tmp_path / "back", "--no-check")
    assert back.exit_code == 0, back.output
    again = load_file(tmp_path / "back" / "model.fp16.safetensors")
    assert again.keys() == before.keys() and all(np.array_equal(again[key], before[key]) for key in before)


def test_shards_and_index_of_a_variant_have_its_names(tmp_path: Path) -> None:
    source, out = variant(tmp_path / "source"), tmp_path / "out"
    assert run("stretch", source, "--to-units", "5", "-o", out, "--shard-size", "4KB").exit_code == 0
    index = json.loads((out / "model.safetensors.index.fp16.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model.fp16-00001-of-{len(files):05}.safetensors" and len(files) > 1
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    assert len(eir.load(out, headers_only=True).stages[0]) == 5


def test_plain_weights_go_before_a_variant_and_the_variant_on_request(tmp_path: Path) -> None:
    source = write(tmp_path / "source", llama(3, seed=1), config(3))
    variant(source, seed=2)
    plain, chosen = tmp_path / "plain", tmp_path / "chosen"
    assert run("stretch", source, "--to-units", "4", "-o", plain).exit_code == 0
    assert [path.name for path in plain.glob("*.safetensors")] == ["model.safetensors"]
    assert run("stretch", source, "--to-units", "4", "--variant", "fp16", "-o", chosen).exit_code == 0
    assert [path.name for path in chosen.glob("*.safetensors")] == ["model.fp16.safetensors"]
    name = "model.norm.weight"
    assert np.array_equal(load_file(chosen / "model.fp16.safetensors")[name], llama(3, seed=2)[name])
    result = run("verify", chosen, "--against", source)  # against the same variant of the source
    assert result.exit_code == 0, result.output


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    source = variant(variant(tmp_path / "source", "fp16"), "bf16")
    result = run("inspect", source)
    assert result.exit_code == 1
    assert (
        "holds weights as bf16, fp16 and none without a variant; state which are meant, by --variant bf16"
        in result.output
    )
    assert run("inspect", source, "--variant", "fp16").exit_code == 0
    with pytest.raises(SourceError, match="no weights of the variant 'ema'; it has bf16, fp16"):
        eir.load(source, headers_only=True, variant="ema")
    plain = write(tmp_path / "plain", llama(3), config(3))
    with pytest.raises(SourceError, match="it has none of any variant; leave out --variant"):
        eir.load(plain, headers_only=True, variant="fp16")
    with pytest.raises(SourceError, match="is a file; variant='fp16' chooses among the weights of a folder"):
        eir.load(plain / "model.safetensors", variant="fp16")
    with pytest.raises(SourceError, match="is no folder; variant='fp16'"):
        eir.load("timm:resnet18", variant="fp16")


def test_masks_beside_are_no_variant_and_indices_no_side_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", llama(3), config(3))
    (folder / "model.masks.safetensors").write_bytes(b"")
    variant(folder, shards=2)
    names = {path.name for path in folder.iterdir()}
    assert [layout.variant for layout in layouts_among(names)] == ["", "fp16"]
    (folder / "model.masks.safetensors").unlink()
    assert run("stretch", folder, "--to-units", "4", "-o", tmp_path / "out").exit_code == 0
    assert not list((tmp_path / "out").glob("*index*"))


def test_names_of_diffusers_and_of_torch_save() -> None:
    names = {"config.json", "diffusion_pytorch_model.bin.index.non_ema.json"}
    found = chosen_layout(names)
    assert found is not None and found.variant == "non_ema"
    assert found.saved == (
        "diffusion_pytorch_model.non_ema.bin",
        "diffusion_pytorch_model.bin.index.non_ema.json",
    )
    assert found.weights == "diffusion_pytorch_model.non_ema.safetensors"
    assert (
        LAYOUTS[0].variants(["pytorch_model.fp16.bin", "model-00001-of-00002.safetensors"])[0].variant
        == "fp16"
    )


def test_a_folder_with_only_a_variant_is_a_checkpoint(tmp_path: Path) -> None:
    assert is_checkpoint(variant(tmp_path / "source", shards=2))
    assert not is_checkpoint(tmp_path)
