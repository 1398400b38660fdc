"""Tables of accuracy, memory and throughput, as markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import accuracy, end_line, read, run_line, two_methods, whole_run, write

from analysis import render, usage


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return two_methods(tmp_path)


def test_accuracy_markdown(suite: Path) -> None:
    text = render.markdown(accuracy(suite))
    assert "| optimizer | rte / full | toy / full | trials |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| start (zero-shot) | 50.0 (1) | 50.0 ± 0.0 (3) | — |" in text
    assert "| adamw | — | 60.0 ± 0.0 (3) | 1 |" in text
    assert "| zo_sgd | oom | **73.0 ± 2.6 (3) ↓** | 1 to 2 |" in text
    assert "- zo_sgd, rte / full: oom: needed 9 GiB of 8" in text


def test_a_missing_cell_names_the_command_that_fills_it(suite: Path) -> None:
    (section,) = accuracy(suite).sections
    setting = "precision=fp32 schedule=constant batch_size=16 budget=forwards budget.amount=400"
    assert section.commands == tuple(
        f"python -m runners.train suite=demo model=tiny task=rte scheme=full optimizer=adamw {setting} seed={seed}"
        for seed in (1, 2, 3)
    )
    text = render.markdown(accuracy(suite))
    assert f"\n    {section.commands[0]}\n" in text
    assert f"% {section.commands[0]}\n" in render.latex(accuracy(suite))


def test_statuses_show_where_nothing_else_is_known(tmp_path: Path) -> None:
    for optimizer, status in (("a", "diverged"), ("b", "incomplete"), ("c", "skipped"), ("d", "preempted")):
        whole_run(tmp_path, optimizer=optimizer, status=status)
    whole_run(tmp_path, optimizer="a", lr=9, status="oom")
    (section,) = accuracy(tmp_path).sections
    assert [row[1].text for row in section.rows[1:]] == ["diverged/oom", "incomplete", "skipped", "preempted"]
    assert [command.split("optimizer=")[1][0] for command in section.commands] == ["b", "d"]
    (section,) = usage.memory(read(tmp_path).runs).sections
    assert [row[7].text for row in section.rows] == ["diverged/oom", "incomplete", "skipped", "preempted"]
    (section,) = usage.throughput(read(tmp_path).runs).sections
    assert [row[7].text for row in section.rows] == ["diverged/oom", "incomplete", "skipped", "preempted"]


def test_one_seed_and_lost_seeds_show_in_the_cell(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="a", seed=1, test=0.7)
    whole_run(tmp_path, optimizer="b", seed=1, test=0.6)
    whole_run(tmp_path, optimizer="b", seed=2, test=0.8)
    whole_run(tmp_path, optimizer="b", seed=3, status="diverged", reason="loss is NaN")
    (section,) = accuracy(tmp_path).sections
    assert [(row[1].text, row[1].bold) for row in section.rows[1:]] == [
        ("70.0 (1)", True),
        ("70.0 ± 14.1 (2 of 3)", True),
    ]
    assert section.notes == ("b, toy / full: diverged: loss is NaN",)


def test_precisions_and_budgets_are_not_mixed(tmp_path: Path) -> None:
    whole_run(tmp_path, precision="bf16")
    whole_run(tmp_path, precision="fp32")
    whole_run(tmp_path, precision="fp32", run_id="s", budget={"unit": "seconds", "amount": 2.5})
    titles = [section.title for section in accuracy(tmp_path).sections]
    assert titles == ["tiny · bf16 · 400 forwards", "tiny · fp32 · 2.5 seconds", "tiny · fp32 · 400 forwards"]


def test_memory_is_the_largest_peak(suite: Path) -> None:
    table = usage.memory(read(suite).runs)
    text = render.markdown(table)
    names = "fp32 | x86_64, 2 CPUs | process_rss | 16"
    assert f"| toy | full | adamw | {names} | 3.000 | 0.500 | 1,200 | 5,000 | 3 |" in text
    assert "| rte | full | zo_sgd | fp32 | x86_64, 2 CPUs | — | 16 | oom | — | 1,200 | 5,000 | 0 |" in text
    csv = render.csv_text(table.columns, table.data)
    assert (
        'tiny,toy,full,adamw,,fp32,"x86_64, 2 CPUs",16,process_rss,completed,3221225472,536870912,1200,5000,3\n' in csv
    )


def test_throughput_leaves_out_the_first_step(suite: Path) -> None:
    # 200 steps after the first in 22 - 2 = 20 s: 100 ms each, with 6432 / 201 = 32 examples and 320 tokens a step.
    text = render.markdown(usage.throughput(read(suite).runs))
    assert "| batch | ms/step | forwards/step | examples/s | tokens/s | train s | eval s | rest s | runs |" in text
    assert "400 forwards | x86_64, 2 CPUs | 16 | 100.00 | 2.00 | 320.0 | 3200 | 22.0 | 3.0 | 1.0 | 4 |" in text


def test_a_run_of_one_step_has_no_speed(tmp_path: Path) -> None:
    write(tmp_path, run_line(), end_line(n_step=1))
    text = render.markdown(usage.throughput(read(tmp_path).runs))
    assert "| 16 | — | 402.00 | — | — | 22.0 |" in text


def test_markdown_and_latex_escape_names(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="a|b<script>&_x_", task="50%_$q$", model="m{1}~^\\", run_id="r")
    text, tex = render.markdown(accuracy(tmp_path)), render.latex(accuracy(tmp_path))
    assert r"| a\|b&lt;script&gt;&amp;\_x\_ |" in text
    assert "<script>" not in text
    assert r"a\textbar{}b\textless{}script\textgreater{}\&\_x\_ & 70.0 (1) & 1 \\" in tex
    assert r"50\%\_\$q\$ / full" in tex
    assert render.latex(usage.memory(read(tmp_path).runs)).count(r"\toprule") == 1


def test_latex_is_booktabs(suite: Path) -> None:
    tex = render.latex(accuracy(suite))
    assert "\\begin{tabular}{lrrr}\n\\toprule\n" in tex
    assert r"zo\_sgd & oom & \textbf{73.0 $\pm$ 2.6 (3) $\downarrow$} & 1 to 2 \\" in tex
    assert tex.endswith("\n")
