"""Choices at an end of their grid are marked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import Row, accuracy, only, read, whole_run

from analysis import edges, render, tables
from analysis.select import choose


@pytest.mark.parametrize(
    ("dev", "mark"),
    [
        ({0.1: 0.6, 0.2: 0.7, 0.3: 0.8}, "↑"),
        ({0.1: 0.8, 0.2: 0.7, 0.3: 0.6}, "↓"),
        ({0.1: 0.6, 0.2: 0.8, 0.3: 0.7}, ""),
        ({9e-6: 0.7, 1e-5: 0.8}, "↑"),  # by size, not by letter
        ({0.1: 0.7, 0.2: 0.8, 0.3: "diverged"}, ""),  # a larger one was tried
        ({0.1: "oom", 0.2: 0.8, 0.3: "skipped"}, "↑"),  # this one was not
        ({0.1: 0.7, 0.2: 0.8, 0.3: "incomplete"}, "↑"),
        ({0.1: 0.8}, ""),
        ({0.1: "oom", 0.2: "diverged"}, ""),
    ],
)
def test_a_choice_at_the_edge_of_its_grid_is_marked(tmp_path: Path, dev: dict[float, Any], mark: str) -> None:
    for lr, outcome in dev.items():
        whole_run(tmp_path, lr=lr, **({"status": outcome} if isinstance(outcome, str) else {"dev": outcome}))
    choice = only(tmp_path)
    assert choice.edge == mark
    assert (choice.highest, choice.lowest) == (("lr",) * (mark == "↑"), ("lr",) * (mark == "↓"))


@pytest.mark.parametrize(
    ("chosen", "others", "mark"),
    [
        ({"lr": 2, "lr_full": 1}, [{"lr": 1, "lr_full": 2}], "↑lr ↓lr_full"),
        ({"lr": 2, "lr_full": 1}, [{"lr": 1, "lr_full": 1}], "↑"),  # lr_full was not searched
        ({"lr": 2, "zo_eps": 2}, [{"lr": 1, "zo_eps": 1}, {"lr": 3, "zo_eps": 1}], "↑zo_eps"),
        ({"lr": 2, "mask": "b"}, [{"lr": 2, "mask": "a"}], ""),
        ({"lr": 2, "adapt": True}, [{"lr": 2, "adapt": False}], ""),
        ({"lr": 2}, [{"lr": None}], ""),
        ({"lr": 2}, [{}], ""),
        ({}, [{"lr": 2}], ""),
    ],
)
def test_each_searched_number_counts_and_is_named(chosen: Row, others: list[Row], mark: str) -> None:
    points = [json.dumps({"optimizer": point}) for point in (chosen, *others)]
    assert edges.mark(*edges.edges(points[0], points)) == mark


def test_an_edge_is_said_of_a_cell_beside_its_other_marks(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for lr, better in ((0.1, "a"), (0.2, "b"), (0.3, "")):
            for optimizer in ("a", "b", "c"):
                test = 0.8 + 0.01 * seed * (optimizer != "c") - 0.05 * (optimizer == "b" and seed == 2)
                dev = 0.7 + 0.1 * (better == optimizer)
                whole_run(tmp_path, optimizer=optimizer, lr=lr, seed=seed, dev=dev - 0.01 * lr, test=test)
        whole_run(tmp_path, task="rte", optimizer="a", lr=0.1, seed=seed)
    unmarked = tables.accuracy(read(tmp_path).runs, [replace(c, lowest=()) for c in choose(read(tmp_path).runs)])
    table = accuracy(tmp_path)
    cells = [(cell.text, cell.bold) for row in table.sections[0].rows[1:] for cell in row[1:3]]
    assert cells == [
        *[("70.0 ± 0.0 (3)", False), ("82.0 ± 1.0 (3) ↓", True)],
        *[("—", False), ("80.3 ± 3.1 (3) ≈", False)],
        *[("—", False), ("80.0 ± 0.0 (3) ≈ ↓", False)],
    ]
    plain = [(cell.text, cell.bold) for row in unmarked.sections[0].rows[1:] for cell in row[1:3]]
    assert plain == [(text.removesuffix(" ↓"), bold) for text, bold in cells]  # an edge changes no other mark
    assert r"\textbf{82.0 $\pm$ 1.0 (3) $\downarrow$}" in render.latex(table)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert [(r["task"], r["optimizer"], r["highest"], r["lowest"]) for r in rows] == [
        *[("rte", "a", "", ""), ("toy", "a", "", "lr"), ("toy", "b", "", ""), ("toy", "c", "", "lr")]
    ]
    assert edges.EXPLAINED in table.caption
    assert edges.HIGHEST not in unmarked.caption
