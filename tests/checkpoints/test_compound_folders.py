"""Pipelines and models of modules: one network changes, and all that lies with it is written with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.write import plan_checkpoint
from elastic_ir.errors import SourceError
from elastic_ir.formats.compound_folder import network_in, networks_of, parts_of
from tests.checkpoints.folders import State, config, llama, run, write


def part(folder: Path, state: State, configuration: dict[str, Any], stem: str = "model") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configuration))
    save_file(state, folder / f"{stem}.safetensors", {"format": "pt"})
    return folder


def dit(layers: int, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    ends = {"attn1.to_q.weight": (8, 8), "ff.net.0.proj.weight": (16, 8), "ff.net.2.weight": (8, 16)}
    state = {
        f"transformer_blocks.{at}.{end}": rng.standard_normal(shape).astype(np.float32)
        for at in range(layers)
        for end, shape in ends.items()
    }
    return {**state, "proj_out.weight": np.ones((4, 8), np.float32)}


def pipeline(folder: Path) -> Path:
    """What ``save_pretrained`` leaves of a pipeline: a transformer, a text encoder, a scheduler, no safety checker."""
    named = {"transformer": ["diffusers", "DiT"], "text_encoder": ["transformers", "LlamaModel"]}
    index = {
        "_class_name": "Some",
        **named,
        "scheduler": ["diffusers", "DDIM"],
        "safety_checker": [None, None],
    }
    part(folder / "transformer", dit(3), {"_class_name": "DiT", "num_layers": 3}, "diffusion_pytorch_model")
    part(folder / "text_encoder", llama(3), config(3))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"num_layers": 3}')
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("# Some\n")
    save_file({"all": np.ones(3)}, folder / "v1-pruned.safetensors")
    return folder


def sentences(folder: Path, inner: str) -> Path:
    """A model of sentence-transformers, whose transformer lies in the folder itself (new) or in one inside (old)."""
    paths = [inner, "1_Pooling", "2_Dense"]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": "some.Type"} for at, path in enumerate(paths)
    ]
    write(folder / inner, llama(3), config(3))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"num_hidden_layers": 3}')  # of no network
    part(folder / "2_Dense", {"linear.weight": np.eye(3)}, {"in_features": 3})
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("of the old depth")
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_component_changes_and_its_pipeline_comes_with_it(tmp_path: Path) -> None:
    source, out = pipeline(tmp_path / "pipe"), tmp_path / "out"
    result = run("stretch", source, "--component", "transformer", "--to-units", "5", "-o", out)
    assert result.exit_code == 0, result.output
    assert "left out:   v1-pruned.safetensors, whose depth is the source's" in result.output
    before, after = files(source), files(out)
    new = {"transformer/README.md", "transformer/elastic_ir.json"}
    assert after.keys() == (before.keys() | new) - {"v1-pruned.safetensors"}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert json.loads(after["transformer/config.json"])["num_layers"] == 5
    held = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    for at, layer in enumerate([0, 1, 2, 0, 1]):
        end = "ff.net.2.weight"
        assert np.array_equal(
            held[f"transformer_blocks.{at}.{end}"], dit(3)[f"transformer_blocks.{layer}.{end}"]
        )


def test_what_was_written_is_verified_and_undone(tmp_path: Path) -> None:
    source, out, back = pipeline(tmp_path / "pipe"), tmp_path / "out", tmp_path / "back"
    assert run("stretch", source, "--component", "transformer", "--to-units", "5", "-o", out).exit_code == 0
    for folder in (out, out / "transformer"):
        found = run("verify", folder)
        assert (
            found.exit_code == 0
            and "(found beside it)" in found.output
            and "result:     equal" in found.output
        )
    against = run("verify", out, "--against", source)
    assert against.exit_code == 0 and "beside:     5 files of the other parts, byte by byte" in against.output
    weights = out / "text_encoder" / "model.safetensors"
    held = weights.read_bytes()
    weights.write_bytes(held[:-1] + b"\1")
    (out / "scheduler" / "scheduler_config.json").unlink()
    beside = run("verify", out)
    assert beside.exit_code == 1
    assert (
        "text_encoder/model.safetensors differs from the source's file (pipe/text_encoder/model"
        in beside.output
    )
    assert "scheduler/scheduler_config.json is missing" in beside.output
    assert f"error: 2 files beside {out / 'transformer'} are not the source's" in beside.output
    weights.write_bytes(held)
    (out / "scheduler" / "scheduler_config.json").write_text('{"num_layers": 3}')
    both = tmp_path / "both"
    words = ("--component", "text_encoder", "--to-units", "4", "-o", both)
    assert run("stretch", out, *words).exit_code == 0
    assert run("verify", both, "--component", "text_encoder").exit_code == 0
    later = run("verify", both, "--component", "transformer")
    assert later.exit_code == 0 and "not text_encoder, which has a record of its own" in later.output
    path = out / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert run("verify", out).exit_code == 1
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result = run("undo", out, "-o", back, "--no-check")
    assert result.exit_code == 0, result.output
    (source / "v1-pruned.safetensors").unlink()
    again, before = files(back), files(source)
    assert json.loads(again.pop("transformer/config.json")) == json.loads(
        before.pop("transformer/config.json")
    )
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert load_file(back / name).keys() == load_file(source / name).keys()
    del again[name], before[name]
    assert again == before


def test_which_network_is_meant_is_asked(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "pipe")
    result = run("inspect", source)
    assert result.exit_code == 1
    assert (
        "state which is meant, by --component transformer (component=): transformer, text_encoder"
        in result.output
    )
    assert "transformer_blocks" in run("inspect", source, "--component", "transformer").output
    assert "model.layers" in run("diff", source, source, "--component", "text_encoder", "--headers").output
    with pytest.raises(SourceError, match="no component 'vae'; its networks are transformer, text_encoder"):
        eir.load(source, headers_only=True, component="vae")
    with pytest.raises(SourceError, match="no component 'x'; it has none; leave out --component"):
        eir.load(source / "transformer", headers_only=True, component="x")
    with pytest.raises(
        SourceError, match="is no folder; component='x' chooses among the networks of a folder"
    ):
        eir.load("timm:resnet18", component="x")


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_modules_behind_a_transformer_come_with_their_weights(tmp_path: Path, inner: str) -> None:
    source, out = sentences(tmp_path / "source", inner), tmp_path / "out"
    result = run("stretch", source, "--to-units", "5", "-o", out)
    assert result.exit_code == 0, result.output
    assert np.array_equal(load_file(out / "2_Dense" / "model.safetensors")["linear.weight"], np.eye(3))
    assert json.loads((out / "1_Pooling" / "config.json").read_text())["num_hidden_layers"] == 3
    assert json.loads((out / inner / "config.json").read_text())["num_hidden_layers"] == 5
    assert (out / "modules.json").read_bytes() == (source / "modules.json").read_bytes()
    assert not (out / "onnx").exists() and "left out:   onnx/model.onnx" in result.output
    assert run("verify", out).exit_code == 0


def test_a_stopped_run_of_a_pipeline_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import elastic_ir.checkpoints.write as writer

    source, out = pipeline(tmp_path / "pipe"), tmp_path / "out"
    arguments = [
        "stretch",
        source,
        "--component",
        "transformer",
        "--to-units",
        "5",
        "-o",
        out,
        "--shard-size",
        "1KB",
    ]
    with monkeypatch.context() as patched:
        patched.setattr(writer, "copy_side_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments).exit_code != 0
    kept = sorted(path.name for path in (tmp_path / ".out.partial" / "whole" / "transformer").iterdir())
    assert kept and not out.exists()
    assert run(*arguments, "--resume").exit_code == 0
    assert set(kept) <= {path.name for path in (out / "transformer").iterdir()}
    assert len(eir.load(out, headers_only=True, component="transformer").stages[0]) == 5


def test_a_link_out_of_the_pipeline_is_refused(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "pipe")
    (tmp_path / "secret").write_text("secret")
    (source / "scheduler" / "more.txt").symlink_to(tmp_path / "secret")
    graph = eir.load(source, headers_only=True, component="transformer")
    with pytest.raises(SourceError, match="is a symbolic link out of the folder"):
        plan_checkpoint(graph)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("modules.json", "[", "modules.json is damaged"),
        ("modules.json", '[{"path": "../x"}]', "names the part '../x'; parts lie inside its own folder"),
        ("modules.json", '[{"name": "0"}]', "does not list the parts"),
        ("model_index.json", "[1]", "does not list the parts"),
        ("router_config.json", '{"types": 3}', "does not list the parts"),
    ],
)
def test_a_damaged_statement_of_parts_is_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(SourceError, match=message):
        parts_of(tmp_path)


def test_a_router_names_its_modules(tmp_path: Path) -> None:
    (tmp_path / "router_config.json").write_text('{"types": {"query_0_Transformer": "T", "gone": "T"}}')
    write(tmp_path / "query_0_Transformer", llama(2), config(2))
    assert networks_of(tmp_path) == ["query_0_Transformer"]
    assert network_in(tmp_path) == tmp_path / "query_0_Transformer"
