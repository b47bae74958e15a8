"""GGUF files of the hub: chosen by quantisation or name, read by ranges, fetched into the cache when needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from tests.checkpoints.hub_server import COMMIT, Hub, fetched_from
from tests.networks.gguf_files import Type, llama, read_back

pytest.importorskip("huggingface_hub")
REPO = "some/Tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository as quantisers leave it."""
    folder = tmp_path / "repository"
    (folder / "F32").mkdir(parents=True)
    for quant in (Type.Q8_0, Type.Q4_0):
        llama(folder / f"tiny-{quant.name}.gguf", 4, types=quant)
    llama(folder / "tiny-Q4_0_X.gguf", 4)
    llama(folder / "mmproj-tiny-Q8_0.gguf", 2)
    llama(folder / "F32" / "tiny-F32.gguf", 4, split=12)
    (folder / "README.md").write_text("# Tiny\n")
    with fetched_from(tmp_path, monkeypatch) as made:
        made.add(REPO, folder)
        yield made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(elastic_ir, arguments)


def good(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def said(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    return done.output.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("source", "file"),
    [
        (f"{REPO}:Q8_0", "tiny-Q8_0.gguf"),
        (f"{REPO}:q4_0", "tiny-Q4_0.gguf"),
        (f"hf:{REPO}@main:Q4_0_X", "tiny-Q4_0_X.gguf"),
        (f"hf:{REPO}/tiny-Q4_0.gguf", "tiny-Q4_0.gguf"),
        (f"hf:{REPO}@{COMMIT}/mmproj-tiny-Q8_0.gguf", "mmproj-tiny-Q8_0.gguf"),
    ],
)
def test_a_file_is_chosen_and_looked_at_by_its_header(hub: Hub, source: str, file: str) -> None:
    found = json.loads(good("inspect", source, "--json"))
    assert found["name"] == Path(file).stem
    assert hub.whole == []
    assert {path.rpartition("/")[2] for _, path, span in hub.asked if span} == {file}


def test_a_result_is_written_verified_and_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dry run" in good("stretch", f"{REPO}:Q4_0", "--to-units", "6", "--dry-run")
    assert hub.whole == []
    good("stretch", f"{REPO}:Q4_0", "--to-units", "6")
    made = Path("tiny-Q4_0-6.gguf")
    assert hub.whole == ["tiny-Q4_0.gguf"]
    record = json.loads(read_back(made)[0]["elastic_ir.record"])
    label = f"{REPO}@{COMMIT}/tiny-Q4_0.gguf"
    assert record["history"][0]["sources"] == [label]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the cache has it now
    assert f"{label} (found in the hub's cache)" in good("verify", str(made))
    good("verify", str(made), "--against", f"hf:{label}")
    good("squeeze", f"{REPO}:Q4_0", "--drop", "0", "-o", "small.gguf")
    assert hub.whole == ["tiny-Q4_0.gguf"]
    assert "not all files of it are in the hub's cache" in said("inspect", f"{REPO}:Q8_0")


def test_all_parts_are_fetched(hub: Hub) -> None:
    good("stretch", f"{REPO}:F32", "--to-units", "5", "-o", "out.gguf")
    parts = sorted(name.rpartition("/")[2] for name in hub.files[REPO] if name.startswith("F32/"))
    assert len(parts) > 2 and sorted(hub.whole) == parts
    assert len(list(Path().glob("out-*.gguf"))) == len(parts)
    part = f"hf:{REPO}/F32/{parts[1]}"
    assert "give" in said("inspect", part)


def test_from_python_tensors_are_fetched_when_they_are_read(hub: Hub) -> None:
    graph = eir.stretch(eir.load(f"{REPO}:Q8_0"), to_units=5)
    assert hub.whole == []
    eir.save(graph, "five.gguf")
    assert hub.whole == ["tiny-Q8_0.gguf"]
    mixed = eir.stretch(eir.load("five.gguf"), plan="0-4,b/0", others={"b": eir.load(f"{REPO}:Q4_0")})
    eir.save(mixed, "mixed.gguf")
    assert hub.whole == ["tiny-Q8_0.gguf", "tiny-Q4_0.gguf"]


def test_where_it_is_not_known_which_is_meant(hub: Hub) -> None:
    error = said("inspect", REPO)
    assert f"holds GGUF files; say which is meant, as {REPO}:Q4_K_M by its quantisation" in error
    assert "tiny-Q4_0.gguf, tiny-Q4_0_X.gguf, tiny-Q8_0.gguf" in error
    error = said("inspect", f"{REPO}:Q2_K")
    assert f"{REPO}:Q2_K has not one GGUF file of the quantisation Q2_K; say which" in error
    assert "has no file other.gguf; say which" in said("inspect", f"hf:{REPO}/other.gguf")
    hub.files["some/Plain"] = {"config.json": b"{}"}
    assert "and no GGUF file at all" in said("inspect", "some/Plain:Q8_0")
    assert "is a file; variant='fp16' chooses" in said("inspect", f"{REPO}:Q8_0", "--variant", "fp16")


def test_what_breaks_off(hub: Hub) -> None:
    hub.broken.add("tiny-Q8_0.gguf")
    assert "broke off" in said("inspect", f"{REPO}:Q8_0")
    hub.broken.clear()
    hub.served["tiny-Q8_0.gguf"] = hub.files[REPO]["tiny-Q8_0.gguf"][:-1] + b"?"
    assert "by its checksum" in said("stretch", f"{REPO}:Q8_0", "--to-units", "5", "-o", "out.gguf")
    assert not Path("out.gguf").exists()


def test_the_cache_does_not_decide_between_several(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    good("stretch", f"{REPO}:Q4_0", "--to-units", "5", "-o", "out.gguf")
    hub.files[REPO]["other/tiny-Q4_0.gguf"] = hub.files[REPO]["tiny-Q8_0.gguf"]
    assert "has not one GGUF file of the quantisation Q4_0; say which" in said("inspect", f"{REPO}:Q4_0")
    good("inspect", f"hf:{REPO}/tiny-Q4_0.gguf")  # that is one file in any case
    url = hub.url
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # the list cannot be had: what is here is taken
    assert json.loads(good("inspect", f"{REPO}:Q4_0", "--json"))["name"] == "tiny-Q4_0"
    monkeypatch.setenv("HF_ENDPOINT", url)
    good("stretch", f"hf:{REPO}/other/tiny-Q4_0.gguf", "--to-units", "5", "-o", "more.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = said("inspect", f"{REPO}:Q4_0")
    assert error.endswith(f"as hf:{REPO}/other/tiny-Q4_0.gguf: other/tiny-Q4_0.gguf, tiny-Q4_0.gguf")


def test_a_projector_is_no_quantisation_of_a_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    good("stretch", f"hf:{REPO}/mmproj-tiny-Q8_0.gguf", "--to-units", "3", "-o", "projector.gguf")
    assert json.loads(good("inspect", f"{REPO}:Q8_0", "--json"))["name"] == "tiny-Q8_0"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not all files of it are in the hub's cache" in said("inspect", f"{REPO}:Q8_0")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    del hub.files[REPO]["tiny-Q8_0.gguf"]
    assert "has not one GGUF file of the quantisation Q8_0; say which" in said("inspect", f"{REPO}:Q8_0")


@pytest.mark.parametrize("source", [f"{REPO}:F32", f"hf:{REPO}/F32/tiny-F32-00001-of-00004.gguf"])
def test_parts_of_which_one_was_fetched(hub: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sorted(name for name in hub.files[REPO] if name.startswith("F32/"))
    hub.served[parts[1]] = hub.files[REPO][parts[1]][:-1] + b"?"
    assert "by its checksum" in said("stretch", source, "--to-units", "5", "-o", "out.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (snapshot,) = (Path().resolve().parent / "cache").glob("models--*/snapshots/*")
    assert (snapshot / parts[0]).exists() and not (snapshot / parts[1]).exists()
    (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)  # as 'hf download' leaves it
    assert "not all files of it are in the hub's cache" in said("inspect", source)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.served.clear()
    good("stretch", source, "--to-units", "5", "-o", "out.gguf")
    assert all((snapshot / part).exists() for part in parts)
