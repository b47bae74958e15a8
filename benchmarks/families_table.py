"""The table of the benchmark of transformers' types: verdicts, causes and totals of its results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

RIGHT = "right"
APART = "right, but for the layers of another kind at its ends"
BY_ENTRY = "right, where the entry that counts it is named"
NO_COPY = "right, to be refused: a deeper or shallower one has layers that are copies of none"
NOT_FOUND = "not found"


def verdict(stack: Mapping[str, Any]) -> str:
    """Right, or the first thing that is not, as a word and its text."""
    stretched = "not stretched" if stack["stretch"] == "-" else stack["stretch"]
    told = [stack["found"], stretched, stack["squeeze"]]
    bad = [text for text in told if text != "-" and not text.startswith(RIGHT)]
    worst = [text for text in bad if text.startswith(("wrong", "crashed"))]
    refused = [text for text in bad if text.startswith("refused")]
    return next(iter([*worst, *refused, *bad]), RIGHT)


def cause(text: str) -> str:
    """A verdict without the names and numbers of the one network."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"\b(?!config\.json)\w+(\.[\w#]+)+\.?|\b\w*_\w+\b", "…", text)
    return re.sub(r"\d+", "#", text)[:160]


def write_table(results: Sequence[dict[str, Any]], path: Path) -> str:
    """The table and the totals, as Markdown; returns the totals."""
    built = sorted((r for r in results if "stacks" in r), key=lambda r: str(r["type"]))
    stacks = [(r["type"], stack, verdict(stack)) for r in built for stack in r["stacks"]]
    right = sum(told == RIGHT for _, _, told in stacks)
    words = Counter(word_of(told) for _, _, told in stacks)
    rest = ", ".join(f"{words[word]} {word}" for word in sorted(words) if word != RIGHT)
    traces = Counter(word_of(r["traced"]) for r in built if "traced" in r)
    totals = (
        f"{len(built)} of {len(results)} types were built small; they have {len(stacks)} stacks. Right: {right} "
        f"({100 * right / max(len(stacks), 1):.1f} %); {rest or 'no others'}. Traced: "
        + ", ".join(f"{number} {word}" for word, number in sorted(traces.items()))
        + "."
    )
    lines = [
        "# Families: every model type of transformers, from its folder",
        "",
        f"Written by `python -m benchmarks.families` with transformers {transformers.__version__} and torch "
        f"{torch.__version__.split('+')[0]}.",
        "A stack is a numbered list of layers that grows when a count in the configuration is raised, and lies in",
        "the blocks of no other; those with a quarter or more of the layers of the model's largest are counted.",
        "`right`: it is one stage with the unit that its layers show, and one unit more and one less load in",
        "transformers without a missing, unexpected or mismatched name, into lists as long as in the model that is",
        "built natively, whose layers are of the kinds of those that they are copies of. So it is where the natively",
        "built one has layers of which none is a copy of the source's, and the change is refused.",
        "",
        totals,
        "",
        "| type | stacks | right | others |",
        "|---|---|---|---|",
    ]
    for r in built:
        told = [verdict(stack) for stack in r["stacks"]]
        others = Counter(word_of(text) for text in told if text != RIGHT)
        cells = [
            r["type"],
            str(len(told)),
            str(told.count(RIGHT)),
            ", ".join(f"{n} {w}" for w, n in others.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What is not right, by its cause", ""]
    by_cause = Counter(cause(told) for _, _, told in stacks if told != RIGHT)
    for text, number in by_cause.most_common():
        who = sorted({kind for kind, _, told in stacks if cause(told) == text})
        lines.append(f"- {number}: {text} ({', '.join(who)})")
    lines += ["", "## Each stack that is not right", ""]
    lines += [
        f"- {kind}, `{s['list']}#`, counted by `{s['count']}`: {told}"
        for kind, s, told in stacks
        if told != RIGHT
    ]
    lines += [
        "",
        "## Right, but with layers of another kind that stand outside of the stage, at its ends",
        "",
    ]
    lines += [
        f"- {kind}, `{s['list']}#`{s['found'].removeprefix(APART)}"
        for kind, s, told in stacks
        if told == RIGHT and s["found"].startswith(APART)
    ]
    lines += ["", "## Right, but not as a stage that is made deeper", ""]
    for r in built:
        for s in r["stacks"]:
            odd = next(
                (one for one in (s["found"], s["stretch"], s["squeeze"]) if one in (BY_ENTRY, NO_COPY)), None
            )
            if odd is not None and verdict(s) == RIGHT:
                lines.append(f"- {r['type']}, `{s['list']}#`, counted by `{s['count']}`: {odd}")
    lines += ["", "## The tenth that is traced", ""]
    lines += [f"- {r['type']}: {r['traced']}" for r in built if "traced" in r]
    lines += ["", "## Not built small", ""]
    left_out = sorted((r for r in results if "stacks" not in r), key=lambda r: str(r["type"]))
    lines += [
        f"- {r['type']}: {without_places(str(r.get('not_built') or r.get('broken')))}" for r in left_out
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")
    return totals


def without_places(text: str) -> str:
    """A message without the files that modules are of, which differ from machine to machine.

    >>> without_places("not in <module 'a.b' from '/home/me/a/b.py'> nor there")
    "not in <module 'a.b'> nor there"
    """
    return re.sub(r" from '[^']*'?(?=>|$)", "", text)


def word_of(told: str) -> str:
    found = re.match(r"right|refused|wrong|crashed|not found|cut|unit|same|not traced|trace", told)
    return found[0] if found else "other"


def results_in(path: Path) -> list[dict[str, Any]]:
    """The results that a table tells, as far as it is written from them: of what is right no more than that it is."""
    parts = re.split(r"^## (.*)$", path.read_text(), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    found: dict[str, dict[str, Any]] = {}
    for kind, stacks in re.findall(r"^\| (\S+) \| ([0-9]+) \| [0-9]+ \| .*\|$", parts[0], re.MULTILINE):
        right = {"list": "", "count": "", "found": RIGHT, "stretch": RIGHT, "squeeze": RIGHT}
        found[kind] = {"type": kind, "stacks": [dict(right) for _ in range(int(stacks))]}
    listed = Counter[str]()
    for title, text in sections.items():
        for line in re.findall(r"^- (.*)$", text, re.MULTILINE):
            if title.startswith("The tenth"):
                kind, told = line.split(": ", 1)
                found[kind]["traced"] = told
            elif title.startswith("Not built"):
                kind, told = line.split(": ", 1)
                found[kind] = {"type": kind, "not_built": told}
            elif stack := re.match(r"(\S+), `(.*?)#`(?:, counted by `(.*?)`: | \()(.*)", line):
                kind, head, count, told = stack.groups()
                apart = f"{APART} ({told}" if count is None else told
                found[kind]["stacks"][listed[kind]] |= {"list": head, "count": count or "", "found": apart}
                listed[kind] += 1
    return list(found.values())
