"""Adapters of the hub by their names: fetched once, found in the cache without network, refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import elastic_ir as eir
from elastic_ir.errors import SourceError
from tests.checkpoints.adapters.test_follow import adapter, changed, check_layers, followed, lora
from tests.checkpoints.folders import run
from tests.checkpoints.hub_server import COMMIT, Hub, fetched_from

pytest.importorskip("huggingface_hub")
REPO = "someone/lora"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub with an adapter, a tokenizer beside it, and a trainer's state; and an empty cache."""
    folder = adapter(tmp_path / "repository", lora(range(4)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"PK")
    with fetched_from(tmp_path, monkeypatch) as made:
        made.add(REPO, folder)
        yield made


def test_a_name_is_fetched_and_then_found(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = changed(tmp_path, "0-3,2")
    result = run("follow", REPO, "--base", base)
    assert result.exit_code == 0, result.output
    out = Path("lora-5")  # in the working folder, not in the cache
    check_layers(followed(out)[0], lora(range(4)), [0, 1, 2, 3, 2])
    assert (out / "tokenizer.json").exists() and not (out / "training_args.bin").exists()
    assert f"{REPO}@{COMMIT}" in (out / "elastic_ir.json").read_text()
    assert sorted(hub.whole) == ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    assert "equal" in run("verify", out).output
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    eir.follow(f"hf:{REPO}", base, tmp_path / "again")
    made, wanted = followed(tmp_path / "again")[0], followed(out)[0]
    assert all(np.array_equal(made[name], array) for name, array in wanted.items())
    assert not hub.asked


@pytest.mark.slow
def test_a_base_of_the_hub_is_read_by_its_headers(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapter(tmp_path / "mine", lora(range(4)), revision="of-the-earlier-base")
    base = changed(tmp_path, "0-3,2")
    hub.add("someone/deeper", base)
    assert run("follow", own, "--base", "hf:someone/deeper", "-o", tmp_path / "out").exit_code == 0
    tensors, settings = followed(tmp_path / "out")
    check_layers(tensors, lora(range(4)), [0, 1, 2, 3, 2])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("someone/deeper", None)
    assert sorted(hub.whole) == ["config.json", "elastic_ir.json"]  # of the weights a range
    result = run("follow", own, "--base", "someone/deeper@main", "-o", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert followed(tmp_path / "again")[1]["revision"] == "main"
    del hub.files["someone/deeper"]["elastic_ir.json"]
    hub.add("someone/plain", base.parent / "source")
    plain = run("follow", own, "--base", "someone/plain", "-o", tmp_path / "other").output
    assert f"someone/plain@{COMMIT} has no elastic_ir.json" in plain
    eir.load("someone/plain")  # with the weights, and without what lies beside them
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = run("follow", own, "--base", "someone/plain", "-o", tmp_path / "other").output
    assert "someone/plain: elastic_ir.json is not in the hub's cache" in plain


def test_a_base_behind_a_url_is_read_by_its_headers(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    own, base = adapter(tmp_path / "mine", lora(range(4))), changed(tmp_path, "0-3,2")
    system = fsspec.filesystem("memory")
    system.put(str(base), "/followed/deeper", recursive=True)
    result = run("follow", own, "--base", "memory://followed/deeper", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    tensors, settings = followed(tmp_path / "out")
    check_layers(tensors, lora(range(4)), [0, 1, 2, 3, 2])
    assert settings["base_model_name_or_path"] == "memory://followed/deeper"
    system.rm("/followed/deeper/elastic_ir.json")
    plain = run("follow", own, "--base", "memory://followed/deeper", "-o", tmp_path / "other").output
    assert "memory://followed/deeper has no elastic_ir.json" in plain
    file = run("follow", own, "--base", "memory://followed/m.gguf", "-o", tmp_path / "other").output
    assert "memory://followed/m.gguf is no folder of a model" in file


def test_what_is_no_adapter_is_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = changed(tmp_path, "0-3,2")

    def said(name: str) -> str:
        with pytest.raises(SourceError) as error:
            eir.follow(name, base, tmp_path / "out")
        return str(error.value)

    hub.files["someone/model"] = {"config.json": b"{}", "model.safetensors": b""}
    assert (
        "is no adapter of PEFT, which has adapter_config.json and adapter_model.safetensors; it has config.json"
        in (said("someone/model"))
    )
    assert "does not exist here, and is no model on the hub" in said("someone/nothing")
    del hub.files[REPO]["adapter_model.safetensors"]
    assert "is no adapter of PEFT" in said(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids to fetch it" in said(REPO)
