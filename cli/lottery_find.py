"""``lottery find``: a search for tickets of one network, without a study."""

from __future__ import annotations

from pathlib import Path

import click

from elastic_ir.choices import words_of
from elastic_ir.cli import tables
from elastic_ir.cli.app import GO_ON, run_flags
from elastic_ir.extras import import_extra
from elastic_ir.training.settings import Log, Precision, Pruning, Training

LOG = click.option(
    "--log", type=click.Choice(words_of(Log)),
    help="Log loss and rate of each training by Lightning's logger, beside its results.",
)  # fmt: skip


def need_extra() -> None:
    """SourceError where what trainings need is not installed."""
    import_extra("lightning.pytorch", "train", "a training")


@click.command("find")
@click.argument("factory", metavar="NETWORK")
@click.option(
    "--data",
    default="digits",
    show_default=True,
    metavar="DATA",
    help="digits, fashion-mnist, idx:FOLDER, cifar10:FOLDER, images:FOLDER or package.module:function.",
)
@click.option("--channels", type=int, default=0, metavar="N", help="Repeat grey images to so many channels.")
@click.option(
    "--steps", type=click.IntRange(1), required=True, metavar="N", help="Optimizer steps of a whole training."
)
@click.option(
    "--rewind",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="STEP",
    help="The step that tickets are rewound to.",
)
@click.option(
    "--levels",
    type=click.IntRange(0),
    required=True,
    metavar="N",
    help="How often a share of the weights is pruned.",
)
@click.option(
    "--share",
    type=float,
    default=0.2,
    show_default=True,
    help="The share of the remaining weights that goes at each level.",
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="NAME",
    help="A weight or module that is never pruned. May be repeated.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images in a batch."
)
@click.option("--lr", type=float, default=0.1, show_default=True, help="The peak learning rate.")
@click.option("--compile", "compiled", is_flag=True, help="Train with torch.compile.")
@click.option(
    "--precision",
    type=click.Choice(words_of(Precision)),
    default="32-true",
    show_default=True,
    help="As Lightning names it.",
)
@click.option(
    "--loss", default="", metavar="NAME", help="package.module:function or class; cross-entropy without it."
)
@click.option(
    "--no-channels-last",
    is_flag=True,
    help="Leave the layout in memory as it is; for inputs that are not images.",
)
@LOG
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the initialization and the order of the data."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False),
    required=True,
    metavar="DIR",
    help="A folder for the tickets; a search that was stopped goes on there.",
)
@run_flags
def find_(
    factory: str, data: str, channels: int, steps: int, rewind: int, levels: int, share: float,
    leave_out: tuple[str, ...], batch_size: int, lr: float, compiled: bool, precision: Precision, loss: str,
    no_channels_last: bool, log: Log | None, seed: int, out: str,
) -> None:  # fmt: skip
    """Search for tickets of NETWORK by iterative magnitude pruning; each level's is a .pt file that all commands take.

    NETWORK is PACKAGE.MODULE:FACTORY, timm:NAME or torchvision:NAME.
    """
    need_extra()
    click.get_current_context().meta[GO_ON] = True
    from elastic_ir.training.data import load_data
    from elastic_ir.training.fit import Engine
    from elastic_ir.training.pruning.imp import Level, find_tickets
    from elastic_ir.training.studies.names import build, loss_of

    network = build({"network": {"factory": factory}, "seed": seed})
    done, total = 0, rewind + (levels + 1) * (steps - rewind)
    levels_found: list[dict[str, object]] = []
    with tables.steps("steps of all trainings") as tell:

        def count(more: int) -> None:
            nonlocal done
            done += more
            if tell is not None:
                tell(done, total)

        def show(level: Level) -> None:
            count(rewind + (level.number + 1) * (steps - rewind) - done)
            tables.say(
                f"level {level.number:2}: sparsity {100 * level.sparsity:5.1f} %, {level.measured}, {level.path}"
            )
            measured = level.measured
            levels_found.append(
                {"number": level.number, "sparsity": level.sparsity, measured.measure: measured.value,
                 "path": str(level.path)}
            )  # fmt: skip

        found = find_tickets(
            network, load_data(data, channels),
            Training(steps=steps, batch_size=batch_size, lr=lr, compile=compiled, precision=precision,
                     channels_last=not no_channels_last),
            Pruning(levels, rewind, share, leave_out), Path(out), seed=seed, loss=loss_of({"loss": loss}),
            engine=Engine(tell=count), log=log or "", report=show,
            waiting=lambda who: tables.note(f"{who} is working on the same search; waiting for its results"),
        )  # fmt: skip
    # no level is called the best: it would be chosen by the test data
    tables.show_facts(
        [
            ("tickets", f"{Path(out) / 'levelNN.pt'}, NN from 00 (dense) to {found[-1].number:02}"),
            ("dense", str(found[0].measured)),
        ]
    )
    tables.say_result({"folder": out, "levels": levels_found})
