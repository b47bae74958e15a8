"""``follow``: an adapter of PEFT for a base whose layers were changed."""

from __future__ import annotations

from pathlib import Path

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE, FORCE_OPTION, given, run_flags
from elastic_ir.cli.options import SOURCE, Here, Reading, gathered

EPILOG = """\
\b
Examples:
  elastic-ir stretch llama --to-units 32 -o llama-32
  elastic-ir follow my-lora --base llama-32
  elastic-ir follow my-lora --base llama-32 -o my-lora-32
  elastic-ir follow ORG/my-lora --base ORG/llama-32

The record of the base (elastic_ir.json) states which layer each layer was made from. Each gets the adapter's
tensors of that layer: a copy those of its source, a layer of another network none. Where a copy was multiplied
(--scale, --zero, --identity), so is what the adapter adds to it. adapter_config.json follows, and names the base as
--base does. A model's folder that holds an adapter beside its weights needs none of this: stretch and squeeze carry
both.
"""


@click.command("follow", short_help=COMMANDS["follow"], epilog=EPILOG)
@click.argument("adapter", type=SOURCE, metavar="ADAPTER")
@click.option(
    "--base", type=SOURCE, metavar="CHANGED", required=True,
    help="What stretch or squeeze has made of the model that the adapter belongs to: a folder, a model of the hub, "
    "or a URL.",
)  # fmt: skip
@click.option(
    "--trained-on", metavar="NAME",
    help="Which model of the base's record the adapter was trained on, where the base was changed several times and "
    "the adapter's own settings do not show it.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=Here(), metavar="OUT",
    help="The folder to write. Without it, the adapter's name with the new number of layers, beside it.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@FORCE_OPTION
@gathered("reading", Reading, run_flags, only=("component",))
def follow(
    adapter: str, base: str, trained_on: str | None, out: str | None, dry_run: bool, reading: Reading
) -> None:
    """Carry ADAPTER, a folder of PEFT, over to a base that was made deeper or shallower."""
    from elastic_ir.checkpoints.adapters.write import plan_follow, save_follow

    inputs: dict[str, str | None] = {"the adapter": adapter, "the base": base}
    if out is not None:
        output.refuse_overwriting(Path(out), inputs, dry_run)
    with tables.status(f"reading {adapter}"):
        plan = plan_follow(adapter, base, trained_on, reading.component)
    target = Path(out) if out is not None else output.named_after(adapter)[0]
    if out is None:
        counts = "-".join(str(len(stack.order)) for stack in plan.change.stacks)
        target = target.with_name(f"{target.name}-{counts}")
        output.refuse_cache(target)
        output.refuse_overwriting(target, inputs, dry_run)
    tables.show_facts(plan.facts())
    written = []
    if dry_run:
        tables.show_facts([output.would_write(target, size=f" ({tables.file_size(plan.size)})")])
    else:
        with tables.status(f"writing {target}"):
            written = [save_follow(plan, target, given(FORCE))]
        tables.show_facts(output.wrote(written))
    tables.say_result(
        {
            "adapter": adapter,
            "base": plan.made.config["base_model_name_or_path"],
            "plan": dict(plan.step.plan),
            "tensors": len(plan.made.tensors),
            **output.written_data(written),
            "would_write": str(target) if not written else None,
        }
    )
