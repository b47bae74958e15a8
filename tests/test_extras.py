"""A package of an extra that is missing: one sentence everywhere, which names the extra to install."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import elastic_ir as eir
from elastic_ir.cli.lottery_find import need_extra
from elastic_ir.errors import SourceError
from elastic_ir.extras import import_extra
from elastic_ir.passes.infra.yaml_nodes import compose
from elastic_ir.safety.cluster import connected
from elastic_ir.safety.registered import model_class
from elastic_ir.training.data import load_data
from tests.architecture.test_layering import SOURCES


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("timm", "timm", lambda: eir.load("timm:resnet18")),
        ("torchvision.models", "torchvision", lambda: eir.load("torchvision:resnet18")),
        ("torchvision.datasets", "torchvision", lambda: load_data("cifar10:nowhere")),
        ("transformers", "transformers", lambda: model_class({}, "config.json")),
        ("yaml", "recipes", lambda: compose("recipe.yaml")),
        ("ray", "ray", lambda: connected("auto")),
        ("sklearn.datasets", "train", lambda: load_data("digits")),
        ("lightning.pytorch", "train", need_extra),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str, use: Callable[[], Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    wanted = rf".+ needs {name}, which cannot be imported \(.+\); pip install 'elastic-ir\[{extra}\]'"
    with pytest.raises(SourceError) as caught:
        use()
    assert re.fullmatch(wanted, str(caught.value)), caught.value


def test_builds_that_do_not_fit_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError(what)

    monkeypatch.setattr("importlib.import_module", fails)
    what = "operator torchvision::nms does not exist"
    with pytest.raises(SourceError, match="torchvision does not fit the installed torch"):
        import_extra("lightning.pytorch", "train", "a training")
    what = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        import_extra("lightning.pytorch", "train", "a training")


def test_nobody_else_says_what_to_install() -> None:
    own = [name for name, path in SOURCES.items() if "elastic-ir[" in Path(path).read_text("utf-8")]
    assert own == ["elastic_ir.extras"]


@pytest.mark.slow
def test_no_other_library_draws_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=32
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    capfd.readouterr()
    eir.save(eir.stretch(eir.load(tmp_path / "llama"), to_units=3), tmp_path / "deeper")
    assert "%|" not in "".join(capfd.readouterr())
    assert transformers.utils.logging.is_progress_bar_enabled()
