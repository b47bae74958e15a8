"""The callbacks in a Lightning Trainer: what a plain loop gives, accumulation, and going on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from elastic_ir.analysis.pruning.distributions import random_masks
from elastic_ir.errors import MaskError
from elastic_ir.tickets import sparsity
from elastic_ir.training.pruning.dynamic import DPF, RigL
from elastic_ir.training.pruning.dynamic_callbacks import DPFCallback, RigLCallback
from tests.training.digits import accuracy, digits, network

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec.*"),
]


class Digits(pl.LightningModule):
    def __init__(self, seed: int = 0, optimizers: int = 1) -> None:
        super().__init__()
        self.net = network(seed)
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9) for _ in range(self.count)]
        return made if self.count > 1 else made[0]


def loader(size: int = 64) -> DataLoader[Any]:
    images, labels, _, _ = digits()
    return DataLoader(TensorDataset(images[:640], labels[:640]), batch_size=size)


def trainer(callback: pl.Callback, folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def callback_of(method: str) -> RigLCallback | DPFCallback:
    if method == "rigl":
        return RigLCallback(sparsity=0.9, network="net", interval=4)
    return DPFCallback(0.9, network="net", interval=4)


@pytest.mark.parametrize("method", ["rigl", "dpf"])
def test_it_is_what_a_plain_loop_gives(method: str, tmp_path: Path) -> None:
    module, callback = Digits(), callback_of(method)
    trainer(callback, tmp_path, max_epochs=3).fit(module, loader())
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    plain: RigL | DPF
    if method == "rigl":
        plain = RigL(net, optimizer, random_masks(net, 0.9), 30, interval=4)
    else:
        plain = DPF(net, optimizer, 0.9, 30, interval=4)
    for _ in range(3):
        for images, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            plain.before_step()
            optimizer.step()
    plain.finish()
    assert callback.method is not None
    assert len(callback.method.history) == len(plain.history) > 3
    masks = callback.method.masks
    assert all(torch.equal(mask, masks[name]) for name, mask in plain.masks.items())
    for name, tensor in module.net.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
    assert sparsity(masks) == pytest.approx(0.9, abs=1e-3)
    assert all(not module.net.get_parameter(name)[~mask].count_nonzero() for name, mask in masks.items())
    assert accuracy(module.net) > 0.5


@pytest.mark.parametrize("method", ["rigl", "dpf"])
def test_accumulated_batches_are_one_step(method: str, tmp_path: Path) -> None:
    callback = callback_of(method)
    options = {"accumulate_grad_batches": 5, "max_epochs": 4, "gradient_clip_val": 1.0}
    trainer(callback, tmp_path, **options).fit(Digits(), loader())
    assert callback.method is not None
    assert callback.method.step == callback.method.total_steps == 8
    assert [update.step for update in callback.method.history if update.step] == (
        [4] if method == "rigl" else [4, 8]
    )


@pytest.mark.parametrize("method", ["rigl", "dpf"])
def test_training_goes_on_from_a_checkpoint(method: str, tmp_path: Path) -> None:
    whole = Digits()
    trainer(callback_of(method), tmp_path, max_epochs=2).fit(whole, loader())

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"epoch{trainer.current_epoch}.ckpt")

    first = trainer(callback_of(method), tmp_path, max_epochs=2)
    first.callbacks.append(Stop())  # type: ignore[attr-defined]
    first.fit(Digits(), loader())
    resumed = Digits(seed=7)
    second = trainer(callback_of(method), tmp_path, max_epochs=2)
    second.fit(resumed, loader(), ckpt_path=str(tmp_path / "epoch0.ckpt"))
    assert second.global_step == 20
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="give one of them"):
        RigLCallback()
    with pytest.raises(MaskError, match="give one of them"):
        RigLCallback({"net.0.weight": torch.ones(16, 1, 3, 3)}, sparsity=0.5)
    with pytest.raises(MaskError, match="DPFCallback works with one optimizer; this module has 2"):
        trainer(DPFCallback(0.9), tmp_path, max_steps=1).fit(Digits(optimizers=2), loader())
    with pytest.raises(MaskError, match="no submodule 'backbone'"):
        trainer(DPFCallback(0.9, network="backbone"), tmp_path, max_steps=1).fit(Digits(), loader())


def test_without_a_network_names_are_the_module_s(tmp_path: Path) -> None:
    module = Digits()
    masks = {"net.7.weight": torch.rand(10, 512) < 0.2}
    callback = RigLCallback(masks, interval=2)
    trainer(callback, tmp_path, max_steps=5).fit(module, loader())
    assert callback.method is not None
    assert list(callback.method.masks) == ["net.7.weight"]
    head = module.net[7]
    assert isinstance(head, nn.Linear)
    assert head.weight.count_nonzero() <= masks["net.7.weight"].sum()


def test_rigl_starts_and_ends_with_a_dense_first_layer_under_uniform(tmp_path: Path) -> None:
    module = Digits()
    callback = RigLCallback(sparsity=0.5, distribution="uniform", network="net", interval=2)
    trainer(callback, tmp_path, max_epochs=1).fit(module, loader())
    assert callback.method is not None and len(callback.method.history) > 1
    first, *others = callback.method.masks.values()
    assert first.all() and all(not mask.all() for mask in others)
    assert sparsity(callback.method.masks) == pytest.approx(0.5, abs=1e-3)
