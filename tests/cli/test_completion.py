"""What the Tab key completes, and installing that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.cli.test_cli import ROOT, bad, complete, good, small_resnet


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    save_file(small_resnet(), tmp_path / "model.safetensors")
    return tmp_path


def test_networks_of_libraries() -> None:
    pytest.importorskip("timm")
    assert ("plain", "timm:resnet50") in complete("inspect", incomplete="timm:resnet5")
    assert ("plain", "timm:") in complete("stretch", "a.pt", "--like", incomplete="ti")
    assert ("file", "ti") in complete("inspect", incomplete="ti")
    assert not complete("inspect", incomplete="timm:nonesuch")


def test_passes_within_a_pipeline() -> None:
    assert complete("apply", "a.pt", "--passes", incomplete="compact,fold-b") == [
        ("plain", "compact,fold-batchnorm")
    ]
    assert complete("apply", "a.pt", "--passes", incomplete="stretch{to-d") == []
    assert ("plain", "stretch{to-depth=20},compact") in complete(
        "apply", "a.pt", "--passes", incomplete="stretch{to-depth=20},com"
    )


def test_stages_of_the_source(here: Path) -> None:
    stretch = ("stretch", "model.safetensors")
    assert [text for _, text in complete(*stretch, "--to-stages")] == ["layer1=", "layer2=", "layer3="]
    assert complete(*stretch, "--plan", incomplete="layer1=0-1|layer3") == [("plain", "layer1=0-1|layer3=")]
    assert complete("stretch", "absent.pt", "--to-stages") == []


def test_completing_imports_no_torch(here: Path) -> None:
    code = (
        "import sys\nfrom click.shell_completion import BashComplete\nfrom elastic_ir.cli.app import elastic_ir\n"
        "complete = BashComplete(elastic_ir, {}, 'elastic-ir', '_ELASTIC_IR_COMPLETE').get_completions\n"
        "assert complete(['stretch', 'model.safetensors', '--to-stages'], '')\n"
        "complete(['inspect'], 'timm:r')\nassert complete(['apply', 'a.pt', '--passes'], 'compact,')\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": f"{ROOT}"})


@pytest.mark.parametrize(("shell", "place"), [
    ("bash", ".local/share/bash-completion/completions/elastic-ir"),
    ("zsh", ".zfunc/_elastic-ir"),
    ("fish", ".config/fish/completions/elastic-ir.fish"),
])  # fmt: skip
def test_install(here: Path, monkeypatch: pytest.MonkeyPatch, shell: str, place: str) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("no bash here")
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    path = here / "home" / place
    assert f"wrote:      {path}" in good("completion", "--install")
    assert path.read_text().rstrip() == good("completion", shell).rstrip()
    assert "it is installed, or write over it with --force" in bad("completion", "--install")
    good("completion", "--install", "--force")
    if shell == "bash":
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert "COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}" in path.read_text()


def test_a_shell_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/ksh")
    assert "the shell in use, ksh, is none of bash, zsh, fish; name one of these" in bad("completion")
