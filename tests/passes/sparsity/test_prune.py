"""prune: a dense network becomes a ticket; the masks are those of torch and of the training side, to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import elastic_ir as eir
from elastic_ir.analysis.cost import stored_bytes
from elastic_ir.analysis.pruning.distributions import Distribution, kept_counts
from elastic_ir.cli.app import elastic_ir
from elastic_ir.passes import NMProject, Pipeline, Prune, registered
from elastic_ir.passes.sparsity.prune import Ranking
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.training.pruning.baselines import prune as baseline
from elastic_ir.zoo import cifar_resnet

LOSS = nn.functional.cross_entropy


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = cifar_resnet(14, width=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.state_dict()["running_var"], 0.5, 1.5)
    return model.eval()


def traced(model: nn.Module, masks: Any = None) -> eir.Graph:
    return eir.trace(
        model, (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),), masks=masks
    )


def examples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(24, 3, 16, 16, generator=generator)
    labels = torch.randint(10, (24,), generator=generator)
    return [(inputs[:16], labels[:16]), (inputs[16:], labels[16:])]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name].bool(), expected[name].bool()) for name in expected)


def layers(model: nn.Module) -> dict[str, Any]:
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_global_magnitude_as_torch_prunes() -> None:
    model = network()
    masks = Prune(sparsity=0.9).run(traced(model)).masks()
    found = layers(model)
    torch_prune.global_unstructured(
        [(module, "weight") for module in found.values()], torch_prune.L1Unstructured, amount=0.9
    )
    same(masks, {name: module.weight_mask for name, module in found.items()})


def test_layerwise_magnitude_as_torch_prunes() -> None:
    model = network()
    masks = Prune(sparsity=0.75, scope="uniform").run(traced(model)).masks()
    found = layers(model)
    for module in found.values():
        torch_prune.l1_unstructured(module, "weight", amount=0.75)  # type: ignore[no-untyped-call]
    same(masks, {name: module.weight_mask for name, module in found.items()})


@pytest.mark.parametrize("scope", ["erdos-renyi", "erk"])
def test_layers_get_the_shares_that_are_spread(scope: Distribution) -> None:
    graph = traced(network())
    masks = Prune(sparsity=0.8, scope=scope).run(graph).masks()
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    assert {name: int(mask.sum()) for name, mask in masks.items()} == kept_counts(shapes, 0.8, scope)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_scores_as_the_training_side_has_them(method: Ranking) -> None:
    model = network()
    done = Prune(sparsity=0.85, by=method, data=examples(), iterations=7).run(traced(model))
    same(
        done.masks(),
        baseline(method, model, 0.85, batches=examples(), loss=LOSS, input_shape=(3, 16, 16), iterations=7),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snip", "synflow"])
def test_scores_on_an_onnx_file(method: Ranking, tmp_path: Path) -> None:
    """An ONNX graph normalises with its stored statistics, which only SNIP's gradient depends on."""
    graph = traced(network())
    eir.save(graph, tmp_path / "m.onnx")
    pruned = Prune(sparsity=0.85, by=method, data=examples(), iterations=5)
    ours, its = pruned.run(graph).masks(), pruned.run(eir.load(tmp_path / "m.onnx")).masks()
    assert list(ours) == list(its)
    assert sparsity(its) == pytest.approx(0.85, abs=1e-3)
    if method == "synflow":
        same(its, ours)


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_what_is_pruned_stays_pruned_and_counts(method: Ranking) -> None:
    model = network()
    old = magnitude_masks(network(seed=5), 0.6)
    done = Prune(sparsity=0.8, by=method, data=examples(), iterations=4).run(traced(model, masks=old))
    masks = done.masks()
    assert not any((masks[name].bool() & ~old[name]).any() for name in old)
    total = sum(mask.numel() for mask in old.values())
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(0.8 * total)
    with pytest.raises(
        eir.PlanError, match=r"the network is pruned to 0\.6 already.*sparsity=0\.5 is 0\.5: give a h"
    ):
        Prune(sparsity=0.5, by=method, data=examples()).run(traced(model, masks=old))


def test_patterns_of_n_in_m() -> None:
    model = cifar_resnet(14, width=16).eval()
    graph = traced(model)
    same(Prune(n=2, m=4).run(graph).masks(), NMProject().run(graph).masks())
    done = Prune(n=1, m=4, by="snip", data=examples()).run(graph)
    pruned = done.history.reports["prune"]["pruned"]
    assert "fc.weight" in done.history.reports["prune"]["skipped"]
    for name in pruned:
        assert (done.masks()[name].movedim(1, -1).reshape(-1, 4).sum(1) == 1).all()
    scores = baseline("snip", model, 0.75, batches=examples(), loss=LOSS)
    assert any(not torch.equal(done.masks()[name].bool(), scores[name]) for name in pruned)


def test_names_choose_weights_and_those_left_do_not_count() -> None:
    graph = traced(network())
    done = Prune(sparsity=0.5, skip=("conv1", "fc"), scope="global").run(graph)
    report = done.history.reports["prune"]
    assert report["skipped"] == {"conv1.weight": "skipped as asked", "fc.weight": "skipped as asked"}
    same(done.masks(), magnitude_masks(network(), 0.5, leave_out=("conv1", "fc")))
    only = Prune(sparsity=0.5, only="layer2.*", skip="layer2.0.*").run(graph)
    assert {name.split(".")[0] for name in only.masks()} == {"layer2"}
    assert not any(name.startswith("layer2.0.") for name in only.masks())


def test_a_checkpoint_is_pruned_without_torch(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = network().bfloat16().state_dict()
    save_file(state, tmp_path / "dense.safetensors")
    code = """
import sys, elastic_ir as eir
from elastic_ir.passes import Pipeline
graph = Pipeline.parse("prune{sparsity=0.9},stretch{to-stages=3,3,3}").run(eir.load(sys.argv[1]))
eir.save(graph, sys.argv[2])
assert "torch" not in sys.modules
"""
    given = [str(tmp_path / name) for name in ("dense.safetensors", "out.safetensors")]
    subprocess.run([sys.executable, "-c", code, *given], check=True, timeout=300)
    found = load_file(tmp_path / "out.safetensors")
    masks = magnitude_masks(state, 0.9)
    assert all(torch.equal(found[name] != 0, mask & (state[name] != 0)) for name, mask in masks.items())
    assert torch.equal(found["layer1.2.conv1.weight"], found["layer1.1.conv1.weight"])


@pytest.mark.slow
def test_one_pipeline_from_dense_to_a_deeper_smaller_ticket(tmp_path: Path) -> None:
    """The command, on a module's file and on ONNX; compact takes away what the pruning has emptied."""
    runner = CliRunner()
    torch.save(network(), tmp_path / "m.pt")
    eir.save(traced(network()), tmp_path / "m.onnx")
    pipeline = "prune{sparsity=0.98},stretch{to-depth=20},compact"
    for name in ("m.pt", "m.onnx"):
        out = tmp_path / f"out-{name}"
        result = runner.invoke(
            elastic_ir, ["apply", str(tmp_path / name), "--passes", pipeline, "-o", str(out)]
        )
        assert result.exit_code == 0, result.output
        assert "note:       prune: pruned 42,924 of 43,800 weights (98.00%) in 16 layers" in result.output
        done = eir.load(out)
        assert done.depth <= 20
        assert done.parameter_count() < eir.stretch(eir.load(tmp_path / name), to_depth=20).parameter_count()


@pytest.mark.slow
def test_a_folder_of_a_language_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "dense")
    graph = eir.load(tmp_path / "dense")
    pipeline = "prune{sparsity=0.5 skip=lm_head},stretch{to-units=5}"
    eir.save(Pipeline.parse(pipeline).run(graph), tmp_path / "ticket")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ticket")
    masks = magnitude_masks(model, 0.5, leave_out="lm_head")
    assert again.config.num_hidden_layers == 5
    state = again.state_dict()
    assert all(
        torch.equal(state[name] != 0, mask & (model.state_dict()[name] != 0)) for name, mask in masks.items()
    )
    assert state["lm_head.weight"].all()


def test_integers_are_left_with_their_reason(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(4, 4), "b.weight": torch.ones(4, 4, dtype=torch.int8)}
    torch.save(state, tmp_path / "m.pt")
    done = Prune(sparsity=0.5).run(eir.load(tmp_path / "m.pt"))
    assert done.history.reports["prune"] == {
            "pruned": ["a.weight"], "skipped": {"b.weight": "its numbers are int8, which no mask fits"},
    }  # fmt: skip
    assert Prune(sparsity=0.5).summary(done) == (
        "pruned 8 of 16 weights (50.00%) in 1 layers, 1 left (b.weight: its numbers are int8, which no mask fits)"
    )


def test_a_layer_that_is_emptied_is_named() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layer1.0.conv1.weight").mul_(1e-6)
    done = Prune(sparsity=0.5).run(traced(model))
    assert "nothing is left of layer1.0.conv1.weight" in str(Prune(sparsity=0.5).summary(done))


def test_examples_in_a_file(tmp_path: Path) -> None:
    (x, y), (more, others) = examples()
    path = tmp_path / "examples.npz"
    np.savez(path, inputs=torch.cat([x, more]).numpy(), labels=torch.cat([y, others]).numpy())
    graph = traced(network())
    text = f"prune{{sparsity=0.9 by=snip batch=16 data={path}}}"
    done = Pipeline.parse(text).run(graph)
    same(done.masks(), Prune(sparsity=0.9, by="snip", data=examples()).run(graph).masks())
    given = Pipeline([Prune(sparsity=0.9, by="snip", data=examples())]).run(graph)
    assert given.history.pipeline == ('prune{sparsity=0.9 by=snip data="2 batches"}',)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "state in exactly one way how much is pruned"),
        ({"sparsity": 0.5, "n": 2, "m": 4}, "state in exactly one way how much is pruned"),
        ({"n": 2}, "state in exactly one way how much is pruned"),
        ({"n": 4, "m": 4}, "n=4 m=4 is not a pattern"),
        ({"n": 2, "m": 4, "scope": "erk"}, "n and m fix every layer's sparsity"),
        ({"sparsity": 1.5}, r"the sparsity 1\.5 is not between 0 and 1"),
        ({"sparsity": 0.5, "by": "size"}, "by is magnitude, snip, grasp or synflow, not 'size'"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope is global, uniform, erdos-renyi or erk, not 'layer'"),
        ({"sparsity": 0.5, "by": "synflow", "scope": "erk"}, "SynFlow ranks all layers together"),
        ({"sparsity": 0.5, "by": "snip"}, "snip scores weights on examples: pass data=FILE"),
        ({"sparsity": 0.5, "skip": "fc.wight"}, "skip='fc.wight' fits no weight"),
        ({"sparsity": 0.5, "only": ["fc"], "skip": "fc"}, "no weight of .* can be pruned, 1 left"),
        (
            {"sparsity": 0.5, "by": "snip", "data": [(torch.zeros(2, 5), torch.zeros(2).long())]},
            "snip does not run on this network and these examples: ",
        ),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(eir.PlanError, match=said):
        Prune(**options).run(traced(network()))


def test_what_cannot_be_scored_or_ranked_says_so(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(
        eir.PlanError, match="was read without its network, and prune has to see what reads what"
    ):
        Prune(sparsity=0.5, by="snip", data=examples()).run(eir.load(tmp_path / "bare.pt"))
    with torch.device("meta"):
        empty = cifar_resnet(8, width=4).eval()
    graph = eir.trace(empty, (torch.zeros(1, 3, 16, 16, device="meta"),))
    with pytest.raises(eir.PlanError, match=r"'conv1\.weight' is on the meta device and has no values"):
        Prune(sparsity=0.5).run(graph)
    uneven = {name: torch.ones_like(p) for name, p in network().named_parameters() if name == "fc.weight"}
    uneven["fc.weight"][:9] = 0
    with pytest.raises(eir.PlanError, match=r"fc\.weight is pruned to 0\.9 already"):
        Prune(sparsity=0.5, scope="uniform").run(traced(network(), masks=uneven))


@pytest.mark.slow
def test_every_pass_says_what_it_can_do_for_size_and_latency(tmp_path: Path) -> None:
    """``--measure`` shows it beside what it measured: of 2:4, that it changes neither here."""
    own = {
        name: kind for name, kind in registered().items() if kind.__module__.startswith("elastic_ir.passes.")
    }
    assert len(own) > 20
    assert not [name for name, kind in own.items() if not kind.gains]
    eir.save(traced(cifar_resnet(14, width=16).eval()), tmp_path / "m.pt")
    words = [
        "apply",
        str(tmp_path / "m.pt"),
        "--passes",
        "prune{sparsity=0.75},nm-project",
        "--measure",
        "--dry-run",
    ]
    lines = CliRunner().invoke(elastic_ir, words, catch_exceptions=False).output.splitlines()
    (size,) = [line for line in lines if line.startswith("size:")]
    assert ", a factor of 1.00; " in size and size.endswith("kB as .ticket")
    assert any(line.startswith("latency:") for line in lines)
    gains = [line.removeprefix("gains:").strip() for line in lines if line.startswith("gains:")]
    assert gains == [f"{kind.name}: {kind.gains}" for kind in (Prune, NMProject)]
    assert "neither here" in gains[1] and "sparse tensor cores alone" in gains[1]


def test_bytes_are_those_that_files_take(tmp_path: Path) -> None:
    graph = traced(cifar_resnet(20, width=16).eval())
    done = Prune(sparsity=0.9).run(graph)
    for name, size in (("m.safetensors", stored_bytes(done)), ("m.ticket", stored_bytes(done, packed=True))):
        eir.save(done, tmp_path / name, check=False)
        whole = (tmp_path / name).read_bytes()  # both begin with the length of a header
        assert len(whole) - 8 - int.from_bytes(whole[:8], "little") == size
    assert stored_bytes(done) == stored_bytes(graph) == stored_bytes(graph, packed=True)
    assert stored_bytes(done, packed=True) < 0.2 * stored_bytes(done)
