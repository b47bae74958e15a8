"""``--with-optimizer``: a training checkpoint is written in its source's layout, and training goes on from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from tests.frontends.test_training_files import LAYOUTS, Net, _trained

PLAN = (0, 1, 2, 1, 2)  # of the blocks of three


def run(*words: object) -> Result:
    return CliRunner().invoke(elastic_ir, [str(word) for word in words])


def under(found: Any, path: str) -> Any:
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


def origin(name: str) -> str:
    return re.sub(r"layers\.(\d+)", lambda match: f"layers.{PLAN[int(match[1])]}", name)


@pytest.mark.parametrize(("name", "layout", "key", "prefix", "_"), LAYOUTS)
@pytest.mark.parametrize("arch", [False, True])
def test_the_optimizer_follows_in_the_source_s_layout(
    name: str, layout: Any, key: str, prefix: str, _: Any, arch: bool, tmp_path: Path
) -> None:
    net, optimizer = _trained()
    before = layout(net.state_dict(), optimizer)
    torch.save(before, tmp_path / name)
    out = tmp_path / f"deep{Path(name).suffix}"
    words = ("--arch", f"{__name__}:three") if arch else ()
    ran = run("stretch", tmp_path / name, "--plan", "0-2,1,2", "--with-optimizer", "-o", out, *words)
    assert ran.exit_code == 0, ran.output
    assert "left behind" not in ran.output and "follows the layers" in ran.output
    if key == "state.model":
        assert "kept:       state.timestamp, state.metadata as before" in ran.output
    after = torch.load(out, weights_only=False)
    deep = Net(5)
    state = under(after, key)
    bare = {one.removeprefix("model.").removeprefix("module."): tensor for one, tensor in state.items()}
    deep.load_state_dict(bare, strict=True)
    where = {
        "state_dict": "optimizer_states.0",
        "state.model": "state.optimizers.AdamW",
        "module": "optimizer",
    }[key]
    moved, old = under(after, where), under(before, where)
    order, first = list(bare), list(net.state_dict())
    numbers = moved["param_groups"][0]["params"]
    assert len(numbers) == len(order) == len(moved["state"])
    for number, one in zip(numbers, order, strict=True):
        source = origin(one) if isinstance(number, str) else first.index(origin(one))
        for kind, moment in old["state"][source].items():
            assert torch.equal(moved["state"][number][kind], moment), (one, kind)
    if not isinstance(numbers[0], str):
        again = torch.optim.AdamW(deep.parameters())
        again.load_state_dict(moved)
        deep(torch.randn(5, 4)).sum().backward()
        again.step()
        assert again.state_dict()["state"][0]["step"] == 2
    rest = [top for top in before if top != key.partition(".")[0] and top != where.partition(".")[0]]
    assert all(after[top] == before[top] for top in rest)


def three() -> Net:
    return Net(3)


def test_an_average_follows_too_and_its_count_stays(tmp_path: Path) -> None:
    net, optimizer = _trained()
    average = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    torch.save(
        {"model": net.state_dict(), "ema": average, "optimizer": optimizer, "step": 3}, tmp_path / "c.pt"
    )
    refused = run(
        "stretch", tmp_path / "c.pt", "--to-units", "5", "--with-optimizer", "-o", tmp_path / "d.pt"
    )
    assert refused.exit_code == 1 and "--key model" in refused.output
    ran = run(
        "squeeze",
        tmp_path / "c.pt",
        "--drop",
        "1",
        "--key",
        "model",
        "--with-optimizer",
        "-o",
        tmp_path / "d.pt",
    )
    assert ran.exit_code == 0, ran.output
    assert "average:    ema follows the layers" in ran.output and "kept:       step as before" in ran.output
    after = torch.load(tmp_path / "d.pt", weights_only=True)
    assert after["step"] == 3
    assert torch.equal(after["ema"]["layers.1.0.weight"], average["layers.2.0.weight"])
    Net(2).load_state_dict(after["ema"], strict=True)


def test_averages_under_words_of_their_own_and_in_tuples_follow(tmp_path: Path) -> None:
    net, optimizer = _trained()
    averaged = torch.optim.swa_utils.AveragedModel(net).state_dict()
    shadow = tuple(parameter.detach() + 1 for parameter in net.parameters())
    whole = {
        "model": net.state_dict(),
        "swa": averaged,
        "shadow": {"parameters": shadow},
        "optimizer": optimizer,
    }
    torch.save(whole, tmp_path / "c.pt")
    ran = run(
        "stretch",
        tmp_path / "c.pt",
        "--plan",
        "0-2,1,1",
        "--key",
        "model",
        "--with-optimizer",
        "-o",
        tmp_path / "d.pt",
    )
    assert ran.exit_code == 0, ran.output
    after = torch.load(tmp_path / "d.pt", weights_only=True)
    torch.optim.swa_utils.AveragedModel(Net(5)).load_state_dict(after["swa"], strict=True)
    assert int(after["swa"]["n_averaged"]) == int(averaged["n_averaged"])
    moved = dict(
        zip((name for name, _ in Net(5).named_parameters()), after["shadow"]["parameters"], strict=True)
    )
    assert torch.equal(moved["layers.3.0.weight"], net.state_dict()["layers.1.0.weight"] + 1)


@pytest.mark.parametrize("broken", [{"state": {}, "param_groups": [{}]}, {"state": [], "param_groups": {}}])
def test_what_only_looks_like_an_optimizer_is_none(tmp_path: Path, broken: Any) -> None:
    torch.save({"model": Net(3).state_dict(), "optimizer": broken}, tmp_path / "c.pt")
    ran = run("stretch", tmp_path / "c.pt", "--to-units", "5", "--with-optimizer", "-o", tmp_path / "d.pt")
    assert ran.exit_code == 1 and "the source holds no optimizer" in ran.output


def _two_groups(net: Net) -> dict[str, Any]:
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    return torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.1).state_dict()


def _another_order(net: Net) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(reversed(list(net.parameters())))
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (_two_groups, "2 groups by numbers alone"),
        (_another_order, "lists its parameters in another order"),
        (
            lambda net: torch.optim.SGD(net.head.parameters(), lr=0.1).state_dict(),
            "2 of 10 parameters by numbers",
        ),
        (lambda net: {}, "the source holds no optimizer"),
    ],
)
def test_an_optimizer_that_is_not_understood_is_refused(optimizer: Any, why: str, tmp_path: Path) -> None:
    net = Net(3)
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer(net)}, tmp_path / "c.pt")
    ran = run("stretch", tmp_path / "c.pt", "--to-units", "5", "--with-optimizer", "-o", tmp_path / "d.pt")
    assert ran.exit_code == 1 and why in " ".join(ran.output.split())
    assert not (tmp_path / "d.pt").exists()


def test_groups_of_named_parameters_are_understood(tmp_path: Path) -> None:
    net = Net(3)
    named = list(net.named_parameters())
    groups = [{"params": [(n, p) for n, p in named if (p.ndim > 1) is wide]} for wide in (True, False)]
    optimizer = torch.optim.AdamW(groups)
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    before = eir.load(tmp_path / "c.pt")
    after = eir.stretch(before, plan=[PLAN])
    eir.save_training(after, tmp_path / "d.pt", tmp_path / "c.pt", before)
    moved = torch.load(tmp_path / "d.pt", weights_only=True)["optimizer"]
    old = optimizer.state_dict()
    listed = [name for group in old["param_groups"] for name in group["param_names"]]
    places = {name: number for number, name in enumerate(listed)}
    for group in moved["param_groups"]:
        for number, name in zip(group["params"], group["param_names"], strict=True):
            assert torch.equal(
                moved["state"][number]["exp_avg"], old["state"][places[origin(name)]]["exp_avg"]
            )


def test_masks_and_other_sources_are_refused(tmp_path: Path) -> None:
    net, optimizer = _trained()
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer}, tmp_path / "c.pt")
    state = net.state_dict()
    with torch.no_grad():
        state["head.weight"][0, 0] = 0
    torch.save({"state_dict": state, "optimizer": optimizer}, tmp_path / "z.pt")
    masked = run(
        "stretch",
        tmp_path / "z.pt",
        "--to-units",
        "5",
        "--with-optimizer",
        "--mask-from-zeros",
        "-o",
        tmp_path / "d.pt",
    )
    assert masked.exit_code == 1 and "has no place for masks" in masked.output
    other = run("stretch", "elastic_ir.zoo:cifar_resnet14", "--to-depth", "20", "--with-optimizer")
    assert other.exit_code == 2 and "is for training checkpoints of torch.save" in other.output
    form = run("stretch", tmp_path / "c.pt", "--to-units", "5", "--with-optimizer", "-o", tmp_path / "d.onnx")
    assert form.exit_code == 2 and "-o has another suffix" in form.output


def two_networks(path: Path) -> Path:
    net, optimizer = _trained()
    average = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    torch.save({"model": net.state_dict(), "ema": average, "optimizer": optimizer, "step": 3}, path)
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_record_goes_along_with_its_key_and_is_undone(tmp_path: Path) -> None:
    source, deep, back = two_networks(tmp_path / "c.ckpt"), tmp_path / "c-5.ckpt", tmp_path / "back.ckpt"
    words = ("--to-units", "5", "--key", "model", "--with-optimizer")
    assert run("stretch", source, *words, "-o", deep).exit_code == 0
    seen = run("inspect", deep)
    assert seen.exit_code == 0 and "left behind: ema, optimizer, step" in seen.output
    deeper = run("stretch", deep, "--to-units", "6", "--with-optimizer", "-o", tmp_path / "6.ckpt")
    assert deeper.exit_code == 0, deeper.output
    undone = run("undo", deep, "--with-optimizer", "-o", back)
    assert undone.exit_code == 0 and "optimizer follows the layers" in undone.output, undone.output
    made, before = torch.load(back, weights_only=True), torch.load(source, weights_only=True)
    assert same(made, before)
    assert "several state dicts" in run("inspect", back).output  # as its source
    twice = run("undo", tmp_path / "6.ckpt", "--with-optimizer", "-o", tmp_path / "5.ckpt")
    assert twice.exit_code == 0, twice.output
    assert run("undo", tmp_path / "5.ckpt", "--with-optimizer", "-o", tmp_path / "3.ckpt").exit_code == 0
    assert same(torch.load(tmp_path / "3.ckpt", weights_only=True), before)


def test_passes_and_the_names_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net, optimizer = _trained()
    saved = {"state_dict": net.state_dict(), "optimizer_states": [optimizer]}
    torch.save(saved, "last.ckpt")
    applied = run("apply", "last.ckpt", "--passes", "stretch{to-units=5}", "--with-optimizer")
    assert applied.exit_code == 0 and "left behind" not in applied.output, applied.output
    made = torch.load("last-applied.ckpt", weights_only=True)
    assert run("stretch", "last.ckpt", "--to-units", "5", "--with-optimizer").exit_code == 0
    (other,) = (path for path in tmp_path.iterdir() if path.name not in ("last.ckpt", "last-applied.ckpt"))
    assert other.suffix == ".ckpt" and same(torch.load(other, weights_only=True), made)
    for words in (
        ("apply", "last.ckpt", "--passes", "stretch{to-units=5}"),
        ("stretch", "last.ckpt", "--to-units", "5"),
    ):
        alone = run(*words, "-o", "deep.ckpt")
        assert alone.exit_code == 1 and alone.output == (
            "error: deep.ckpt would hold weights alone, and who reads a .ckpt looks for a training's state; write "
            "deep.pt, or give --with-optimizer to write all of it\n"
        )
    assert not Path("deep.ckpt").exists()
