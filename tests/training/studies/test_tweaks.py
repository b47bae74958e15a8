"""Tweaks in studies: each changes the training, and what is measured is the network without ghosts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.gradinit import GradInit, find_scales
from elastic_ir.analysis.pruning.flops import forward_cost, gradinit_cost
from elastic_ir.errors import PlanError
from elastic_ir.passes import GhostSkips
from elastic_ir.tickets import magnitude_masks
from elastic_ir.training import schedule_of
from elastic_ir.training.callbacks import FollowSchedule
from elastic_ir.training.data import load_data
from elastic_ir.training.fit import fit
from elastic_ir.training.loader import BatchStream
from elastic_ir.training.settings import Training
from elastic_ir.training.studies import tweaks
from elastic_ir.training.studies.executors import InProcess
from elastic_ir.training.studies.methods import Start
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import TWEAKS, runs
from elastic_ir.training.studies.study_file import read_study
from elastic_ir.training.studies.tweaks import tweaked
from elastic_ir.training.studies.work import Work
from elastic_ir.zoo import CifarResNet, cifar_resnet

DATA = load_data("digits", channels=3)
TRAINING = Training(steps=6, batch_size=64)


def work(needs: dict[str, Path] | None = None, **options: Any) -> Work:
    """A job's work on the digits from step 0."""
    made = Work({"rewind": 0, "seed": 0, **options}, needs or {})
    made.data, made.training = DATA, TRAINING
    return made


def start() -> Start:
    torch.manual_seed(0)
    network = cifar_resnet(14, width=4)
    return Start(network, magnitude_masks(network, 0.8))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("names", [["ghost-skips"], ["ghost-softness"], ["ghost-skips", "ghost-softness"]])
def test_ghosts_are_gone_when_the_ticket_is_measured(names: list[str]) -> None:
    point = tweaked(start(), names, work())
    fit(point.network, DATA, TRAINING, masks=point.masks, callbacks=point.callbacks)
    final = point.finished()
    assert isinstance(final, CifarResNet) and list(final.state_dict()) == list(start().network.state_dict())
    assert DATA.test.images is not None
    images = DATA.test.images[:50]
    assert torch.equal(final.eval()(images), point.network.eval()(images))
    plain = start()
    fit(plain.network, DATA, TRAINING, masks=plain.masks)
    assert not torch.equal(final.get_parameter("fc.weight"), plain.network.get_parameter("fc.weight"))
    for name, mask in plain.masks.items():
        assert torch.equal(final.get_parameter(name) == 0, ~mask), name


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for scales that ends soon."""
    monkeypatch.setattr(tweaks, "GradInit", partial(GradInit, steps=6))


def test_scales_change_weights_and_no_mask(short_search: None) -> None:
    point, plain = tweaked(start(), ["layerwise-rescale"], work()), start()
    name = "layer1.0.conv1.weight"
    ratio = (point.network.get_parameter(name) / plain.network.get_parameter(name)).detach()
    assert float(ratio.std()) < 1e-5 and abs(float(ratio.mean()) - 1) > 1e-3
    assert all(torch.equal(point.masks[key], plain.masks[key]) for key in plain.masks)


@pytest.mark.slow
def test_the_search_for_scales_is_counted_and_goes_by_the_loss_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    short = GradInit(steps=3)
    monkeypatch.setattr(tweaks, "GradInit", lambda: short)
    plain = start()
    graph = eir.trace(plain.network.eval(), (torch.zeros(1, *DATA.shape),), masks=plain.masks)
    batches = list(BatchStream(DATA, 32, seed=0, stop=4))
    with FlopCounterMode(display=False) as counter:
        find_scales(graph, batches, settings=short)
    point = tweaked(start(), ["layerwise-rescale"], work())
    cost = forward_cost(plain.network, torch.zeros(1, *DATA.shape))
    bound = gradinit_cost(cost.dense, 3 * 2 * 32)
    assert 0.5 * bound < counter.get_total_flops() <= bound  # no mask makes torch's own count smaller
    assert point.scoring == pytest.approx(gradinit_cost(cost.sparse(plain.masks), 3 * 2 * 64))
    assert point.flops(DATA, 0) == point.scoring > 0

    theirs = start()
    theirs.loss = nn.CrossEntropyLoss(label_smoothing=0.4)
    theirs = tweaked(theirs, ["layerwise-rescale"], work())
    name = "layer1.0.conv1.weight"
    assert not torch.equal(theirs.network.get_parameter(name), point.network.get_parameter(name))
    theirs.loss = nn.MultiMarginLoss()
    with pytest.raises(PlanError, match=r"differentiates the loss twice: .*multi_margin_loss_backward"):
        tweaked(theirs, ["layerwise-rescale"], work())


def test_a_teacher_costs_its_forward_pass(tmp_path: Path) -> None:
    network = {"factory": "elastic_ir.zoo:cifar_resnet", "depth": 20, "width": 4}
    torch.save(cifar_resnet(20, width=4).state_dict(), tmp_path / "trained.pt")
    taught = tweaked(start(), ["soft-labels"], work({"teacher": tmp_path}, network=network))
    teacher = forward_cost(cifar_resnet(20, width=4), torch.zeros(1, *DATA.shape)).dense
    assert (
        taught.flops(DATA, 7) - start().flops(DATA, 7) == pytest.approx(7 * teacher) and taught.scoring == 0
    )


def test_a_schedule_that_begins_at_the_rewind_point_ends_with_the_training() -> None:
    torch.manual_seed(0)
    graph = GhostSkips(decay="linear", share=1.0).run(
        eir.trace(cifar_resnet(14, width=4), (torch.zeros(1, 3, 8, 8),))
    )
    module, schedule = graph.to_module(), schedule_of(graph)
    name = schedule.fadings[0].buffers[0]
    seen: list[float] = []

    class Watch(FollowSchedule):
        def on_train_batch_start(self, *args: Any) -> None:
            super().on_train_batch_start(*args)
            seen.append(float(module.get_buffer(name)))

    fit(module, DATA, TRAINING, start=2, callbacks=[Watch(schedule, 2, TRAINING.steps)])
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.25]) and float(module.get_buffer(name)) == 0.0


def test_labels() -> None:
    smoothed = tweaked(start(), ["label-smoothing"], work())
    assert isinstance(smoothed.loss, nn.CrossEntropyLoss) and smoothed.loss.label_smoothing == 0.1
    with pytest.raises(PlanError, match="soft-labels and label-smoothing both choose the labels"):
        tweaked(start(), ["label-smoothing", "soft-labels"], work())
    with pytest.raises(PlanError, match=r"tweak is ghost-skips, .* or soft-labels, not 'luck'"):
        tweaked(start(), ["luck"], work())


@pytest.mark.slow
def test_a_study_of_tweaks(tmp_path: Path, short_search: None) -> None:
    network = {"factory": "elastic_ir.zoo:cifar_resnet", "depth": 14, "width": 4}
    entries = [{"method": "imp", "label": name, "tweaks": [name]} for name in TWEAKS]
    text = {
        "data": {"name": "digits", "channels": 3}, "networks": {"resnet14": network}, "sparsities": [0.5],
        "training": {"steps": 5, "batch_size": 64}, "pruning": {"share": 0.5}, "seeds": [0], "compare": entries,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    found, store = read_study(path), Store(tmp_path / "store")
    ended = run([item.job for item in runs(found)], store, InProcess(str(store.folder)))
    assert not ended.failed and not ended.skipped
    teachers = {item.job.needs["teacher"].key for item in runs(found) if "teacher" in item.job.needs}
    assert len(teachers) == 1 and ended.total == 1 + 2 + 1 + len(TWEAKS)
    results = [store.result(item.job.key) for item in runs(found)]
    assert len({str(result["accuracy"]) for result in results}) > 1
    assert all(result["sparsity"] == pytest.approx(0.5, abs=0.01) for result in results)
    text["compare"] = [{"method": "imp", "tweaks": ["luck"]}]
    path.write_text(yaml.safe_dump(text))
    with pytest.raises(PlanError, match=r"compare\[0\]\.tweaks\[0\]: 'luck' is not ghost-skips"):
        read_study(path)
