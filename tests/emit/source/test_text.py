"""Expressions as text: no parentheses too many, and spaces as ruff and black set them."""

from __future__ import annotations

import pytest

from elastic_ir.emit.source.text import tidy


@pytest.mark.parametrize(
    ("rough", "text"),
    [
        ("((a) + ((b) * (c)))", "a + b * c"),
        ("(((a) + (b)) * (c))", "(a + b) * c"),
        ("((x) ** (2))", "x**2"),
        ("((x) ** (-0.5))", "x**-0.5"),
        ("((-1) ** (2))", "(-1) ** 2"),
        ("((f(x)) ** (2)).mean()", "(f(x) ** 2).mean()"),
        ("((1.0) / ((y) ** (f(x))))", "1.0 / (y ** f(x))"),
        ("x[(1):(-1)]", "x[1:-1]"),
        ("x[((a) + (1))::(2), ]", "x[a + 1 :: 2,]"),
        ("f('a b', (1e+38), (inf))", 'f("a b", 1e38, float("inf"))'),
        ("{'say \"a\"': (1), **{f'b{i:02}': (i) for i in range((3))}}",
         "{'say \"a\"': 1, **{f\"b{i:02}\": i for i in range(3)}}"),
    ],
)  # fmt: skip
def test_the_text_of_expressions(rough: str, text: str) -> None:
    assert tidy(rough) == text
