"""One network of a pipeline of the hub: what is needed is fetched, and to write it all what a library loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoints.folders import run
from tests.checkpoints.hub_server import COMMIT, Hub, fetched_from
from tests.checkpoints.test_compound_folders import pipeline, sentences

pytest.importorskip("huggingface_hub")
REPO = "some/pipe"
STEM = "transformer/diffusion_pytorch_model"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A pipeline with what repositories have beside what a library loads."""
    folder = pipeline(tmp_path / "pipe")
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        save_file({"half": np.ones(3, np.float16)}, folder / part / f"{stem}.fp16.safetensors")
        (folder / part / "flax_model.msgpack").write_bytes(b"again")
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"again")
    return folder


@pytest.fixture
def hub(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fetched_from(tmp_path, monkeypatch) as made:
        made.add(REPO, source)
        yield made


def test_to_look_at_a_component_its_configuration_and_headers_are_enough(hub: Hub) -> None:
    done = run("inspect", REPO, "--component", "transformer", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["stages"][0]["blocks"] == 3
    assert sorted(hub.whole) == ["config.json", "model_index.json"]


def test_a_result_is_the_whole_pipeline_and_nothing_else_is_fetched(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    how = ("--component", "transformer", "--to-units", "5")
    done = run("stretch", REPO, *how, "-o", "out")
    assert done.exit_code == 0, done.output
    assert run("stretch", source, *how, "-o", tmp_path / "local").exit_code == 0

    def files(folder: Path) -> dict[str, bytes]:
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return {
            name: raw
            for name, raw in found.items()
            if Path(name).name not in ("README.md", "elastic_ir.json")
        }

    made, local = files(Path("out")), files(tmp_path / "local")
    spare = {"model.fp16.safetensors", "flax_model.msgpack", "pytorch_model.bin"}
    assert made == {name: raw for name, raw in local.items() if Path(name).name not in spare}
    assert not spare & set(hub.whole) and "v1-pruned.safetensors" not in hub.whole
    record = json.loads(Path("out/transformer/elastic_ir.json").read_text())
    assert record["history"][0]["sources"] == [f"{REPO}@{COMMIT}/transformer"]
    found = run("verify", "out")
    assert found.exit_code == 0 and "in the hub's cache" in found.output, found.output
    assert run("verify", "out", "--against", REPO).exit_code == 0


def test_without_network_what_the_cache_has_is_enough_or_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ("--component", "transformer", "--to-units", "5", "-o")
    assert run("squeeze", REPO, "--component", "transformer", "--drop", "2", "-o", "small").exit_code == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("stretch", REPO, *how, "out").exit_code == 0
    cached = next(Path("../cache").rglob("text_encoder"))
    for path in cached.iterdir():
        path.unlink()
    cached.rmdir()
    done = run("stretch", REPO, *how, "other")
    assert "text_encoder, which is a part of it, is not in the hub's cache" in done.output
    assert not Path("other").exists()


def test_which_component_is_meant(hub: Hub) -> None:
    done = run("inspect", REPO)
    assert "some/pipe holds several networks; state which is meant, by --component" in done.output
    assert "transformer, text_encoder" in done.output
    done = run("inspect", REPO, "--component", "vae")
    assert "has no component 'vae'; its networks are transformer, text_encoder" in done.output


def test_modules_of_sentence_transformers_come_along(hub: Hub, tmp_path: Path) -> None:
    hub.add("some/sentences", sentences(tmp_path / "sentences", ""))
    done = run("stretch", "some/sentences", "--to-units", "5", "-o", "out")
    assert done.exit_code == 0, done.output
    assert Path("out/1_Pooling/config.json").is_file() and Path("out/2_Dense/model.safetensors").is_file()
    hub.add("some/old", sentences(tmp_path / "old", "0_Transformer"))
    assert run("stretch", "some/old", "--to-units", "5", "-o", "old").exit_code == 0
    assert Path("old/0_Transformer/model.safetensors").is_file() and Path("old/2_Dense").is_dir()
