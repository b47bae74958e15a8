"""``elastic-ir lottery``: find tickets, compare them in studies, and report what was found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION, GO_ON, JSON, given, run_flags
from elastic_ir.cli.lottery_find import LOG, find_, need_extra
from elastic_ir.errors import SourceError
from elastic_ir.formats.files import temporary
from elastic_ir.training.reports.csv import write_numbers
from elastic_ir.training.reports.plots import draw
from elastic_ir.training.reports.report import answers, collect, markdown
from elastic_ir.training.settings import Log
from elastic_ir.training.studies.jobs import Job, in_order
from elastic_ir.training.studies.run import Progress, run
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import Run, Study, runs
from elastic_ir.training.studies.study_file import read_study

if TYPE_CHECKING:
    from elastic_ir.training.studies.transforms import Tried

EPILOG = """\
\b
Examples:
  elastic-ir lottery find elastic_ir.zoo:cifar_resnet20 --channels 3 --steps 300 --levels 5 -o tickets
  elastic-ir lottery run study.yaml --jobs 4
  elastic-ir lottery run study.yaml --ray auto --store /shared/store
  elastic-ir lottery status study.yaml
  elastic-ir lottery report study.yaml -o results
  elastic-ir lottery schema > study.schema.json
"""


@click.group("lottery", short_help=COMMANDS["lottery"], epilog=EPILOG)
def lottery() -> None:
    """Find winning tickets, and compare ways of making them.

    A study is one YAML file (docs/lottery.md): networks, data, methods, sparsities, seeds. Its trainings are jobs that
    are never done twice; a killed study goes on where it was.
    """


STORE = click.option(
    "--store", type=click.Path(file_okay=False), metavar="DIR", default=".lottery", show_default=True,
    help="Where finished jobs are kept; studies that share it share their trainings.",
)  # fmt: skip


STUDIES = click.argument("studies", type=click.Path(), nargs=-1, required=True, metavar="STUDY...")


@lottery.command("run")
@STUDIES
@STORE
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Jobs at once, each in a process.",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads of each job; 1 where several run at once."
)
@click.option(
    "--ray",
    metavar="auto|local|ADDRESS",
    help="Run the jobs on a Ray cluster instead; it has to see the store. local starts one of this machine, which "
    "no other machine reaches.",
)
@LOG
@click.option(
    "--dry-run", is_flag=True,
    help="Show what there is to do, try the transformations on networks without values, and do nothing.",
)  # fmt: skip
@run_flags
def run_(
    studies: tuple[str, ...], store: str, jobs: int, threads: int | None, ray: str | None, log: Log | None,
    dry_run: bool,
) -> None:  # fmt: skip
    """Do all jobs of each STUDY that are not done yet, those of the first one first.

    Several such commands may share a store: each job is done by one of them. Numbers are shown as they are found.
    Stop it whenever you like: only jobs that run are lost.
    """
    found = [read_study(study) for study in studies]
    _show_notes(found)
    networks = _check_names(found, store)
    if dry_run:
        _show_plan(found, store, networks)
        return
    need_extra()
    click.get_current_context().meta[GO_ON] = True
    from elastic_ir.training.studies.executors import Executor, InProcess, Processes, RayCluster

    place = Store(store)
    place.sweep()
    executor: Executor
    if ray is not None:
        executor = RayCluster(store, ray, threads or 1, log or "")
    elif jobs > 1:
        executor = Processes(store, jobs, threads or 1, log or "")
    else:
        executor = InProcess(store, threads or 0, log or "")
    wanted = [item for study in found for item in runs(study)]
    readers: dict[str, list[Run]] = {}
    for item in wanted:
        readers.setdefault(item.job.key, []).append(item)

    def show(job: Job, result: dict[str, Any]) -> None:
        for item in readers.get(job.key, ()):
            tables.say(f"{_placed(item)}: {_number(result)}")

    with tables.progress("jobs") as bar:
        ended = run([item.job for item in wanted], place, executor, lambda now: bar(*_progress(now)), show)
    facts = [("jobs done", f"{ended.done} of {ended.total}")]
    facts += _failures(ended.failed, readers)
    if ended.skipped:
        facts.append(("skipped", f"{len(ended.skipped)} jobs that need a failed one"))
    tables.show_facts(facts)
    if given(JSON):
        numbers = [_run_data(item) | _results(place, item) for item in wanted]
        tables.say_result(
            {"total": ended.total, "done": ended.done, "failed": ended.failed, "skipped": list(ended.skipped),
             "numbers": numbers}
        )  # fmt: skip
    if ended.failed:
        raise SystemExit(1)


def _number(result: dict[str, Any]) -> str:
    """What a job found: a share in percent, or a loss in its own unit."""
    what = next(name for name in ("barrier", "loss", "accuracy") if name in result)
    return f"{what} {result[what]:.4g}" if "loss" in result else f"{what} {100 * result[what]:.2f} %"


def _show_notes(studies: Iterable[Study]) -> None:
    """What is to be known of studies before their numbers are read."""
    for study in studies:
        for note in study.notes:
            tables.note(f"note: {study.name}: {note}")


def _placed(item: Run) -> str:
    return f"{item.network}, {item.label}, {100 * item.sparsity:.1f} %, seed {item.seed}"


def _run_data(item: Run) -> dict[str, Any]:
    return {
        "network": item.network,
        "label": item.label,
        "sparsity": item.sparsity,
        "seed": item.seed,
        "job": item.job.key,
    }


def _results(place: Store, item: Run) -> dict[str, Any]:
    """What was measured, of a job that is done."""
    result = place.result(item.job.key) if place.has(item.job.key) else {}
    return {name: result[name] for name in ("barrier", "loss", "accuracy") if name in result}


def _failures(failed: dict[str, str], readers: dict[str, list[Run]]) -> list[tuple[str, str]]:
    """What went wrong, each once, with the first of the jobs that failed so."""
    by_reason: dict[str, list[str]] = {}
    for key, why in failed.items():
        name = f"{key} ({_placed(readers[key][0])})" if key in readers else key
        by_reason.setdefault(why, []).append(name)
    return [
        ("failed", f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}")
        for why, names in by_reason.items()
    ]


def _progress(now: Progress) -> tuple[int, int, str]:
    left = now.time_left
    words = f"{len(now.running)} running, {now.total - now.done - len(now.running)} left"
    if now.elsewhere:
        words += f", {len(now.elsewhere)} of them done by another command now"
    if now.failed:
        words += f", {len(now.failed)} failed"
    if left is not None:
        words += f", about {_clock(left)} to go"
    return now.done, now.total, words


def _check_names(studies: list[Study], store: str) -> list[dict[str, Any]]:
    """The networks of each study, without values; none for finished ones, which need none of the names.

    Studies that name what does not exist are refused before any job is done.
    """
    place = Store(store)
    made: list[dict[str, Any]] = []
    for study in studies:
        if all(place.has(item.job.key) for item in runs(study)):
            made.append({})
            continue
        from elastic_ir.training.studies.names import check_names

        made.append(check_names(study))
    return made


def _store_of(folder: str) -> Store:
    """A store to read; SourceError where there is none."""
    if not Path(folder).is_dir():
        raise SourceError(
            f"there is no store {folder}: nothing was run with it; give --store DIR as lottery run had it"
        )
    return Store(folder)


def _show_plan(studies: list[Study], store: str, networks: list[dict[str, Any]]) -> None:
    numbers = [item for study in studies for item in runs(study)]
    jobs = in_order(item.job for item in numbers)
    place = Store(store)
    counts = Counter(job.kind for job in jobs)
    done = Counter(job.kind for job in jobs if place.has(job.key))
    rows: list[Sequence[str]] = [(kind, str(count), str(done[kind])) for kind, count in counts.items()]
    tables.show_table(tables.Table(("kind", "jobs", "done"), rows))
    tables.say()
    tried = _try_transforms(studies, networks)
    tables.show_facts([("numbers", str(len(numbers))), ("dry run", f"{len(jobs)} jobs, nothing was done")])
    tables.say_result(
        {
            "jobs": {kind: {"jobs": count, "done": done[kind]} for kind, count in counts.items()},
            "numbers": len(numbers),
            "transforms": [asdict(one) for one in tried],
        }
    )
    if any(one.error for one in tried):
        raise SystemExit(1)


def _try_transforms(studies: list[Study], networks: list[dict[str, Any]]) -> list[Tried]:
    """What the transformations of the studies make, shown as a table, and the errors that they end with."""
    if not any(networks):
        return []
    from elastic_ir.training.studies.transforms import try_transforms

    table = tables.Table(("network", "label", "blocks", "depth"), spare=("blocks",))
    tried: list[Tried] = []
    errors: list[tuple[str, str]] = []
    with tables.status("trying the transformations"):
        for study, made in zip(studies, networks, strict=True):
            tried += try_transforms(study, made) if made else ()
    for one in tried:
        if one.error:
            errors.append(("would fail", f"{one.network}, {one.label}: {one.error}"))
        elif one.source:
            blocks = (",".join(map(str, counts)) for counts in one.blocks)
            depth = (tables.number(depth) for depth in one.depths)
            table.rows.append((one.network, one.label, tables.change(*blocks), tables.change(*depth)))
    if table.rows:
        tables.show_table(table)
        tables.say()
    if errors:
        tables.show_facts(errors)
    return tried


@lottery.command("status")
@STUDIES
@STORE
@run_flags
def status_(studies: tuple[str, ...], store: str) -> None:
    """Show how far each STUDY is, and which of its jobs are running now."""
    place = _store_of(store)
    working = place.working()
    table = tables.Table(("study", "numbers", "jobs", "done", "training so far", "left, about"))
    busy: list[tuple[str, str]] = []
    data: list[dict[str, Any]] = []
    for path in studies:
        study = read_study(path)
        _show_notes([study])
        numbers = [item.job for item in runs(study)]
        jobs = in_order(numbers)
        finished = {job.key for job in jobs if place.has(job.key)}
        busy += [
            ("at work", f"{job.key} of {study.name}, for {_clock(working[job.key])}")
            for job in jobs
            if job.key in working and job.key not in finished
        ]
        now = Progress.of(jobs, place, finished)
        rest = now.time_left
        wanted = {job.key for job in numbers}
        data.append(
            {"study": study.name, "numbers": len(wanted), "numbers_done": len(wanted & finished), "jobs": now.total,
             "jobs_done": now.done, "seconds": sum(map(sum, now.before.values())), "seconds_left": rest}
        )  # fmt: skip
        table.rows.append(
            (study.name, f"{len(wanted & finished)} of {len(wanted)}", str(now.total), str(now.done),
             _clock(sum(map(sum, now.before.values()))), "unknown" if rest is None else _clock(rest))
        )  # fmt: skip
    tables.show_table(table)
    if busy:
        tables.say()
        tables.show_facts(busy)
    tables.say_result({"studies": data})


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02}:{int(seconds % 60):02}"


@lottery.command("report")
@STUDIES
@STORE
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where tables and plots go; the study's own folder without it.",
)
@click.option("--no-plots", is_flag=True, help="Tables only.")
@FORCE_OPTION
@run_flags
def report_(studies: tuple[str, ...], store: str, out: str | None, no_plots: bool) -> None:
    """Write the tables, plots and answered claims of each STUDY, of what is there.

    STUDY.md is for reading; STUDY-results.csv and STUDY-layers.csv have the numbers behind it, one run a row.
    """
    data: list[dict[str, Any]] = []
    for number, study in enumerate(studies):
        if number:
            tables.say()
        data.append(_report(study, store, out, no_plots))
    tables.say_result({"reports": data})


def _report(study: str, store: str, out: str | None, no_plots: bool) -> dict[str, Any]:
    found = collect(read_study(study), _store_of(store))
    _show_notes([found.study])
    folder = Path(out) if out is not None else Path(study).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(study).stem
    other = "give another folder with -o DIR"
    output.refuse_existing(folder / f"{stem}.md", other=other)  # before plots are drawn
    with temporary(folder / stem, folder=True) as room:
        plots = [] if no_plots else draw(found, room)
        tabled = write_numbers(found, room, stem)
        (room / f"{stem}.md").write_text(markdown(found, plots), "utf-8")
        made = sorted(room.iterdir())
        output.refuse_existing(*(folder / part.name for part in made), other=other)
        for part in made:
            os.replace(part, folder / part.name)
    facts: list[tuple[str, Any]] = [("numbers", f"{found.total - found.missing} of {found.total}")]
    facts += [
        ("claim", f"{item.claim.text} ({item.network}, {100 * item.sparsity:.0f} %): {item.verdict}")
        for item in answers(found)
    ]
    tables.show_facts([*facts, *(("wrote", str(folder / name)) for name in [f"{stem}.md", *tabled, *plots])])
    return {
        "study": found.study.name,
        "numbers": found.total,
        "missing": found.missing,
        "claims": [
            {"text": one.claim.text, "network": one.network, "sparsity": one.sparsity, "verdict": one.verdict}
            for one in answers(found)
        ],
        **output.written_data([folder / part.name for part in made]),
    }


@lottery.command("schema")
@run_flags
def schema_() -> None:
    """Print the JSON schema of study files, for editors."""
    from elastic_ir.training.studies.schema import study_schema

    tables.say_json(study_schema())


lottery.add_command(find_)
