"""One training: masks hold, it may begin anywhere, and its settings mean what they say."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from elastic_ir.errors import MaskError, PlanError
from elastic_ir.tickets import magnitude_masks
from elastic_ir.training.callbacks import KeepMasks, SaveRewindPoint
from elastic_ir.training.fit import Engine, accuracy, fit, mean_loss
from elastic_ir.training.settings import Place, Pruning, Training, read
from elastic_ir.training.task import Task
from tests.training.nets import QUICK, digits, perceptron

DATA = digits()


def test_a_training_learns_and_is_the_same_every_time() -> None:
    networks = [perceptron(), perceptron()]
    generator = torch.random.get_rng_state()
    for network in networks:
        assert fit(network, DATA, QUICK, order=3) > 0
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert accuracy(networks[0], DATA.test) > 0.8 > accuracy(perceptron(), DATA.test)
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, networks[1].state_dict()[name]), name
    loss = nn.CrossEntropyLoss()
    assert mean_loss(networks[0], DATA.test, loss) < mean_loss(perceptron(), DATA.test, loss)


def test_steps_before_and_behind_the_rewind_point_are_those_of_one_training() -> None:
    """Without momentum a training in two parts is the training in one: the same batches at the same rates."""
    training = Training(steps=20, batch_size=64, momentum=0.0)
    whole, parts = perceptron(), perceptron()
    fit(whole, DATA, training)
    fit(parts, DATA, training, stop=7)
    fit(parts, DATA, training, start=7)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[name], msg=name)
    with pytest.raises(PlanError, match="a training of 20 steps has no steps 7 to 21"):
        fit(parts, DATA, training, start=7, stop=21)
    assert fit(parts, DATA, training, start=7, stop=7) == 0.0


def test_pruned_weights_stay_zero_through_a_training() -> None:
    network = perceptron()
    masks = magnitude_masks(network, 0.7)
    fit(network, DATA, QUICK, masks=masks)
    for name, mask in masks.items():
        weight = network.get_parameter(name)
        assert torch.equal(weight == 0, ~mask), name


class TwoOutputs(nn.Module):
    """A network with an auxiliary output, and a norm that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.frozen = perceptron(), nn.BatchNorm2d(1).eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.net(self.frozen(x))
        return out, 2 * out


def test_measuring_leaves_a_network_as_it_was_and_takes_the_first_output() -> None:
    network = TwoOutputs()
    plain = accuracy(network.net.eval(), DATA.test)
    network.net.train()
    assert accuracy(network, DATA.test, engine=Engine("cpu")) == plain
    assert network.net.training and not network.frozen.training


def test_mixed_precision_leaves_weights_in_32_bits_and_masks_at_zero() -> None:
    network = perceptron()
    masks = magnitude_masks(network, 0.5)
    fit(network, DATA, Training(steps=40, batch_size=64, precision="bf16-mixed"), masks=masks)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert accuracy(network, DATA.test) > 0.7
    assert all(torch.equal(network.get_parameter(name) == 0, ~mask) for name, mask in masks.items())


@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one_but_for_rounding() -> None:
    networks = [perceptron(blocks=1), perceptron(blocks=1)]
    masks = magnitude_masks(networks[0], 0.5)
    for network, compiled in zip(networks, (False, True), strict=True):
        fit(network, DATA, Training(steps=6, batch_size=64, compile=compiled), masks=masks)
    for name, tensor in networks[0].state_dict().items():
        torch.testing.assert_close(tensor, networks[1].state_dict()[name], atol=1e-4, rtol=1e-3, msg=name)
    assert all((networks[1].get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())


class Theirs(pl.LightningModule):
    """A Lightning module as somebody else writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = perceptron()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_the_callbacks_serve_any_lightning_module(tmp_path: Path) -> None:
    theirs = Theirs()
    masks = magnitude_masks(theirs.model, 0.6)
    begun = copy.deepcopy(theirs.model.state_dict())
    assert DATA.train.images is not None and DATA.train.labels is not None
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(DATA.train.images, DATA.train.labels), batch_size=128
    )
    points = [SaveRewindPoint(step, tmp_path / f"{step}.pt", network="model") for step in (0, 4)]
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[*points, KeepMasks(masks)],
    )  # fmt: skip
    trainer.fit(theirs, loader)
    for name, mask in masks.items():
        assert torch.equal(theirs.model.get_parameter(name) == 0, ~mask), name
    start, fourth = (torch.load(tmp_path / f"{step}.pt", weights_only=True) for step in (0, 4))
    assert torch.equal(start["head.bias"], begun["head.bias"])
    assert not torch.equal(fourth["head.bias"], begun["head.bias"])
    assert not torch.equal(fourth["head.bias"], theirs.model.head.bias)


def test_a_mask_for_no_weight_is_told() -> None:
    with pytest.raises(MaskError, match="Task has no parameter 'absent', nor has a module directly in it"):
        fit(perceptron(), DATA, QUICK, masks={"absent": torch.ones(2)})


@pytest.mark.slow
def test_two_processes_train_what_one_does() -> None:
    """Each takes half of every batch; without norms over the batch the result is the same but for rounding."""
    training = Training(steps=6, batch_size=64)
    alone, together = perceptron(), perceptron()
    masks = magnitude_masks(alone, 0.5)
    fit(alone, DATA, training, masks=masks)
    fit(together, DATA, training, masks=masks, engine=Engine("cpu", devices=2, strategy="ddp_spawn"))
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, together.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name)
    assert all((together.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())


def test_a_batch_that_cannot_be_shared_out_is_told() -> None:
    task = Task(perceptron(), DATA, Training(steps=2, batch_size=63))
    task.trainer = type("Trainer", (), {"world_size": 2, "global_rank": 0})()
    with pytest.raises(PlanError, match="a batch of 63 cannot be shared out evenly among 2 processes"):
        task.train_dataloader()


def test_rates_of_a_training() -> None:
    cosine = Training(steps=100, warmup=10)
    assert cosine.rate_at(0) == 0.1 and cosine.rate_at(9) == 1.0 and cosine.rate_at(10) == 1.0
    assert cosine.rate_at(55) == pytest.approx(0.5) and cosine.rate_at(100) == pytest.approx(0.0)
    steps = Training(steps=100, schedule="step")
    assert [steps.rate_at(at) for at in (0, 49, 50, 75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Training(steps=9, schedule="constant").rate_at(5) == 1.0


def test_settings_are_checked() -> None:
    with pytest.raises(PlanError, match="schedule: 'linear' is not cosine, step or constant"):
        Training(steps=1, schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"precision: 'bf16-true' is not 32-true, bf16-mixed or 16-mixed"):
        Training(steps=1, precision="bf16-true")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="warmup: -1 is not a whole number of at least 0"):
        Training(steps=1, warmup=-1)
    with pytest.raises(PlanError, match="steps: 0 is not a whole number of at least 1"):
        Training(steps=0)
    with pytest.raises(PlanError, match="share: 1 is not a share between 0 and 1"):
        Pruning(levels=1, share=1.0)
    with pytest.raises(
        PlanError, match="here: there is no entry 'stepps'; the entries are steps, batch_size"
    ):
        read(Training, {"stepps": 3}, Place("here"))
    with pytest.raises(PlanError, match="here: steps is missing"):
        read(Training, {}, Place("here"))
    with pytest.raises(PlanError, match="here: steps: 'many' is not a whole number"):
        read(Training, {"steps": "many"}, Place("here"))
    made = read(Training, {"steps": 5, "lr": 1, "milestones": [1, 0.5]}, Place("here"))
    assert made.lr == 1.0 and made.milestones == (1.0, 0.5)
    pruning = Pruning(levels=3, share=0.2)
    assert pruning.sparsity_at(2) == pytest.approx(0.36) and pruning.level_for(0.36) == 2
    assert pruning.level_for(0.9) == 11 and pruning.level_for(0.0) == 0
