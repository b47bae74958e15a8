"""The oracle's own process: ``python -m elastic_ir.checkpoints.oracle.process``, started by
:mod:`elastic_ir.checkpoints.oracle.comparison` beside the writing.

It builds the networks of the source's and the target's configuration and answers what separates the target from what
will be written; where something does, it looks for a configuration that fits, by experiment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.libraries.find import library_of
from elastic_ir.checkpoints.libraries.library import Report
from elastic_ir.checkpoints.oracle import by_layer, counting, experiments, judgement, kinds, network
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import SourceError
from elastic_ir.safety.limits import NETWORK_BYTES, NETWORK_BYTES_EACH, NETWORK_SECONDS, NETWORK_SECONDS_EACH
from elastic_ir.safety.own_process import bounded, serve

_RAISED = 12  #: entries that are raised to see what they count, for each stack


def main() -> None:
    """Answer questions of configurations, tensors and stacks."""
    serve(bounded_answer)


def bounded_answer(data: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`answer` answers; importing the library is not counted in its memory and seconds."""
    with contextlib.suppress(Exception):  # which is reported with the answer
        importlib.import_module(library_of(data["source"]["config"]).imports)
    count = sum(len(data[side]["tensors"]) for side in ("source", "target"))
    seconds = NETWORK_SECONDS + NETWORK_SECONDS_EACH * count + experiments.SECONDS
    with bounded(NETWORK_BYTES + NETWORK_BYTES_EACH * count, seconds):
        return answer(data)


def answer(data: Mapping[str, Any]) -> dict[str, Any]:
    """What comes of a ``source`` and a ``target``, each a ``config`` and the shapes of its ``tensors``, and ``stacks``.

    ``unknown`` is why there is no network to compare with. Else ``class`` is its name, ``library`` what builds it and
    ``file`` what its configuration is called; ``differences`` are those of the target, ``by_depth`` what all of its
    layers have otherwise since they are more or fewer, and ``fails`` is why no network can be built for it;
    ``doubtful`` are names for which the class does not vouch; ``config`` is one that fits, where the target's does not
    and one was found, and ``entries`` are those of it that the target's has otherwise; where none was found for a
    target that was not proposed, ``counting`` is what counts its stacks. A target that was not ``proposed`` has the
    source's configuration, as far as it could be brought to the new layers.

    Asked for ``kinds``, it is those of the source's layers alone, by the labels of the stacks; asked what lies
    ``beside`` them, by the heads of the stacks, it is those of that which grow together with them; asked for what is
    ``indexed`` by layer, it is how tensors beside the stacks are; asked for ``counts``, it is what the entries of the
    configuration count; asked what is ``fitting``, it is which layers of the source the target's configuration, or the
    nearest, has in the places of a target for which none is found, by the labels of the stacks.
    """
    try:
        stacks = [stack_of(item) for item in data["stacks"]]
        if "beside" in data:
            return {"together": _together(data["source"], stacks, data["beside"])}
        if data.get("indexed"):
            return {"indexed": _indexed(data["source"], stacks)}
        if data.get("counts"):
            return {"counts": _counts(data["source"])}
        if data.get("fitting"):
            return {"fitting": _fitting(data["source"], data["target"], stacks)}
        if data.get("kinds"):
            return {"kinds": _kinds(data["source"], stacks)}
        return _answer(data["source"], data["target"], stacks, search=data["search"])
    except SourceError as error:
        return {"unknown": str(error)}
    except Exception as error:  # a broken installation, or a version that loads in another way
        text = " ".join(str(error).split())[:200]
        name = library_of(data["source"]["config"]).name
        return {"unknown": f"{name} cannot be asked ({type(error).__name__}: {text})"}


def stack_of(item: Mapping[str, Any]) -> Stack:
    """A stack of its JSON."""
    taken = tuple(tuple(pair) if pair else None for pair in item["taken"])
    return Stack(**{**item, "order": tuple(item["order"]), "taken": taken})


def _answer(
    source: Mapping[str, Any], target: Mapping[str, Any], stacks: Sequence[Stack], search: bool
) -> dict[str, Any]:
    trials = _Trials(source, target["tensors"], stacks, target["proposed"])
    found: dict[str, Any] = {
        "class": trials.kind,
        "library": trials.library.name,
        "file": trials.library.file,
    }
    report, differences, by_depth = None, ["no configuration"], list[str]()
    if target["proposed"]:
        try:
            report, differences, by_depth = trials.outcome(target["config"])
        except SourceError as error:
            found["fails"] = str(error)
    if search and (differences or "fails" in found):
        config = experiments.settled(source["config"], target["config"], stacks, trials, trials.stated())
        with contextlib.suppress(SourceError):
            report, differences, by_depth = trials.outcome(config)
            found.pop("fails", None)
            if not differences:
                found["config"] = config
                found["entries"] = list(experiments.changes(config, target["config"]))
        if not target["proposed"] and "config" not in found:
            found["counting"] = trials.counting()
    doubtful = judgement.doubtful(report) if report is not None else ()
    return {**found, "differences": differences, "doubtful": sorted(doubtful), "by_depth": by_depth}


def _kinds(source: Mapping[str, Any], stacks: Sequence[Stack]) -> dict[str, list[int]]:
    trials = _Trials(source, {}, stacks)
    return {
        stack.label: kinds.alike(trials.lists[trials.heads[stack.label]], stack.before)
        for stack in stacks
        if stack.label in trials.heads
    }


def _counts(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    trials = _Trials(source, {}, ())
    found = counting.counts(trials.library, source["config"], trials.stated())
    return [dataclasses.asdict(one) for one in found]


def _indexed(source: Mapping[str, Any], stacks: Sequence[Stack]) -> dict[str, Any]:
    trials = _Trials(source, {}, stacks)
    found = by_layer.indexed(trials.library, source["config"], source["tensors"], stacks, trials.heads)
    return {name: dataclasses.asdict(how) for name, how in found.items()}


def _fitting(
    source: Mapping[str, Any], target: Mapping[str, Any], stacks: Sequence[Stack]
) -> dict[str, list[list[int]]]:
    trials = _Trials(source, target["tensors"], stacks, proposed=False)
    config = experiments.settled(source["config"], target["config"], stacks, trials, trials.stated())
    if not trials(config):
        return {}
    return trials.fitting(target["config"]) or trials.fitting(config)


def _together(
    source: Mapping[str, Any], stacks: Sequence[Stack], beside: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    trials = _Trials(source, {}, stacks)
    before = network.lengths(trials.built(source["config"]))
    found = {}
    for stack in stacks:
        head = trials.heads.get(stack.label)
        always: set[str] | None = None
        for _, config in experiments.raised(source["config"], stack) if head is not None else ():
            grown = trials.grown(config, before)
            if head in grown:
                always = grown if always is None else always & grown
        if always is not None:
            near = beside[stack.series.head]
            found[stack.series.head] = [
                one for one in near if any(kinds.same_list(one, other) for other in always)
            ]
    return found


class _Trials:
    """Networks of configurations, held against what will be written."""

    def __init__(
        self,
        source: Mapping[str, Any],
        tensors: Mapping[str, Sequence[int]],
        stacks: Sequence[Stack],
        proposed: bool = True,
    ) -> None:
        self._proposed = proposed
        self.library = library_of(source["config"])
        self._config = source["config"]
        self._module = module = self.built(self._config)
        self.kind = type(module).__name__
        self.lists = kinds.kinds(module)
        self._source = self.library.loading(module, source["tensors"])
        self.heads = kinds.heads(self.lists, stacks)
        for stack in stacks:
            if stack.label not in self.heads:
                head = network.head_of(self.library, self._config, source["tensors"], stack)
                if head is not None and len(self.lists.get(head, ())) == stack.before + stack.tail:
                    self.heads[stack.label] = head
        self._tensors = tensors
        self._stacks = stacks

    def built(self, config: Mapping[str, Any]) -> Any:
        """A configuration's network, without weights; SourceError where there is none."""
        return self.library.network(config, self.library.file)

    def stated(self) -> dict[str, Any]:
        """The source's configuration with the entries that it leaves to the class."""
        stated = self.library.stated(self._config, self._module, self.library.file)
        return dict(json.loads(json.dumps(stated, default=repr)))  # tuples are lists in a file

    def grown(self, config: Mapping[str, Any], before: Mapping[str, int]) -> set[str]:
        """The lists that have one member more than before where a configuration is built; none where it is not."""
        try:
            after = network.lengths(self.built(config))
        except SourceError:
            return set()
        return {one for one, count in before.items() if after.get(one) == count + 1}

    def counting(self) -> dict[str, tuple[str, list[str]]]:
        """For each stack that is to change the entry that makes it longer, and the lists that it makes longer too."""
        before, found = network.lengths(self._module), {}
        for stack in self._stacks:
            head = self.heads.get(stack.label)
            if head is None or len(stack.order) == stack.before:
                continue
            for name, config in itertools.islice(experiments.raised(self.stated(), stack, near=1), _RAISED):
                grown = self.grown(config, before)
                if head in grown:
                    found[stack.label] = name, sorted(one.rstrip(".") for one in grown - {head})
                    break
        return found

    def fitting(self, config: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        """For each stack that is to change, which of its layers a configuration's network has in each of the places."""
        try:
            module, found = self.built(config), dict[str, list[list[int]]]()
        except SourceError:
            return {}
        lists = kinds.kinds(module)
        held = [counting.lists_of(network.shapes(one)) for one in (self._module, module)]
        for stack in self._stacks:
            head = self.heads.get(stack.label)
            if head is None or not stack.changed or len(lists.get(head, ())) != len(stack.sources):
                continue
            before, after = (one.get(head, {}) for one in held)
            found[stack.label] = [
                [
                    at
                    for at, old in enumerate(sorted(before))
                    if old in alike and before[old] == after.get(new)
                ]
                for new, alike in kinds.fitting(self.lists[head], lists[head], stack).items()
            ]
        return found

    def outcome(self, config: Mapping[str, Any]) -> tuple[Report, list[str], list[str]]:
        """What loading into a configuration's network reports, what separates it from the tensors, and what all layers
        have otherwise since they are more or fewer.

        Raises SourceError where no network can be built.
        """
        module = self.built(config)
        lists = kinds.kinds(module)
        other = kinds.differences(self.lists, lists, self._stacks, self.heads)
        other += [told for stack in self._stacks if (told := self._miscounted(stack, lists))]
        report = self.library.loading(module, self._tensors)
        by_depth = kinds.of_depth(self.lists, lists, self._stacks, self.heads)
        return report, [*judgement.differences(self._source, report, self._stacks), *other], by_depth

    def _miscounted(self, stack: Stack, lists: kinds.Lists) -> str:
        """What is wrong with the number of a stack's layers; a checkpoint that lacks layers would not show it."""
        head = self.heads.get(stack.label)
        # names and shapes have to do for what does not change, and where the configuration says what it counts
        if head is None:
            told = self._proposed or not stack.changed
            return "" if told else f"the layers of {stack.label} are not found in {self.kind}"
        count, wanted = len(lists.get(head, ())), len(stack.sources)
        return f"{stack.label} would have {count} layers, not {wanted}" if count != wanted else ""

    def __call__(self, config: Mapping[str, Any]) -> Sequence[str] | None:
        try:
            return self.outcome(config)[1]
        except SourceError:
            return None


if __name__ == "__main__":
    main()
