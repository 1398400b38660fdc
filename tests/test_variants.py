"""What makes runs trials of one search, and what makes them variants of their own; the table of trials."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_up import end_line, eval_line, only, read, run_line, whole_run, write

from analysis import build, variants
from analysis.select import choose
from zobench import identity


def variant_run(
    folder: Path, run_id: str, dev: float = 0.8, test: float = 0.7, start: float = 0.5, **fields: Any
) -> None:
    """A completed run; ``fields`` with a dot are leaves of its config, others of its run line."""
    head = run_line(run_id=run_id, **{name: value for name, value in fields.items() if "." not in name})
    for place, value in fields.items():
        group, _, leaf = place.partition(".")
        if leaf:
            head["config"].setdefault(group, {})[leaf] = value
    scores = {split: {"accuracy": start, "loss": 1.0} for split in ("dev", "test")}
    write(
        folder, head, eval_line(0, "dev", start), eval_line(200, "dev", dev), end_line(dev=dev, test=test, start=scores)
    )


def test_runs_that_differ_in_what_is_not_searched_are_not_trials_of_one(tmp_path: Path) -> None:
    """The prompt makes the worse entry of the two no worse trial of the better; lr is searched within each."""
    for aligned, better in ((True, 0.2), (False, 0.1)):
        for lr in (0.1, 0.2):
            for seed in (1, 2):
                score = {"dev": 0.5 + 0.2 * aligned + 0.1 * (lr == better), "test": 0.4 + 0.2 * aligned}
                variant_run(tmp_path, f"{aligned}{lr}{seed}", lr=lr, seed=seed, **{"task.alignment": aligned}, **score)
    without, aligned = choose(read(tmp_path).runs)
    assert (without.variant, aligned.variant) == ("task.alignment=false", "task.alignment=true")
    assert {without.method, aligned.method} == {"zo_sgd"}
    assert (without.setting, aligned.setting) == ("toy, alignment=false", "toy, alignment=true")
    assert (without.n_trial, without.n_seed, aligned.n_trial, aligned.n_seed) == (2, 2, 2, 2)
    assert (without.test, aligned.test) == (pytest.approx(0.4), pytest.approx(0.6))
    assert [json.loads(c.point or "")["optimizer"]["lr"] for c in (without, aligned)] == [0.1, 0.2]


def test_a_row_says_what_differs_only_where_it_does(tmp_path: Path) -> None:
    for q in (1, 2, 16):
        variant_run(tmp_path, f"q{q}", **{"optimizer.q": q, "task.n_dev": 500})
    variant_run(tmp_path, "adamw", optimizer="adamw", batch_size=8, **{"optimizer.q": 1})
    variant_run(tmp_path, "lora", scheme="lora", **{"optimizer.q": 1, "optimizer.zo_eps": 0.01})
    assert [(c.method, c.scheme) for c in choose(read(tmp_path).runs)] == [
        ("adamw", "full"),
        *[(f"zo_sgd, q={q}", "full") for q in (1, 2, 16)],  # by number, not by letter
        ("zo_sgd", "lora"),
    ]


@pytest.mark.parametrize(
    ("place", "values", "shown"),
    [
        ("batch_size", (8, 16), ["batch_size=8", "batch_size=16"]),
        ("schedule", ("constant", "linear"), ["schedule=constant", "schedule=linear"]),
        ("optimizer.zo_eps", (1e-3, 1e-5), ["zo_eps=1e-05", "zo_eps=0.001"]),
        ("optimizer.mask", (None, "random"), ["mask=null", "mask=random"]),
        ("scheme.r", (4, 8), ["r=4", "r=8"]),
        (
            "model.gradient_checkpointing",
            (True, False),
            ["gradient_checkpointing=false", "gradient_checkpointing=true"],
        ),
        ("optimizer.betas", ([0.9, 0.999], [0.9, 0.99]), ["betas=[0.9, 0.99]", "betas=[0.9, 0.999]"]),
    ],
)
def test_what_makes_a_variant(tmp_path: Path, place: str, values: tuple[Any, Any], shown: list[str]) -> None:
    for i, value in enumerate(values):
        variant_run(tmp_path, f"r{i}", **{place: value})
    assert sorted(c.method for c in choose(read(tmp_path).runs)) == sorted(f"zo_sgd, {text}" for text in shown)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("lr", (0.1, 0.2)),
        ("seed", (1, 2)),
        ("model.path", ("a", "b")),
        ("data.root", ("a", "b")),
        ("wandb.mode", ("off", "offline")),
        ("optimizer.notes", ("a", "b")),
        ("optimizer.weight_decay", (0, 0.0)),
    ],
)
def test_what_makes_none(tmp_path: Path, place: str, values: tuple[Any, Any]) -> None:
    for i, value in enumerate(values):
        variant_run(tmp_path, f"r{i}", **{place: value})
    assert only(tmp_path).method == "zo_sgd"


def test_a_setting_that_older_records_do_not_know_makes_none(tmp_path: Path) -> None:
    variant_run(tmp_path, "old", seed=1)
    variant_run(tmp_path, "new", seed=2, **{"optimizer.sides": "two"})
    assert only(tmp_path).n_seed == 2


def test_the_seed_of_the_data_makes_one_unless_it_is_that_of_the_run(tmp_path: Path) -> None:
    for seed in (13, 21):
        variant_run(tmp_path / "drawn", f"r{seed}", seed=seed, **{"task.data_seed": seed})
        variant_run(tmp_path / "other", f"r{seed}", seed=1, **{"task.data_seed": seed})
    assert (only(tmp_path / "drawn").method, only(tmp_path / "drawn").n_seed) == ("zo_sgd", 2)
    assert [c.setting for c in choose(read(tmp_path / "other").runs)] == ["toy, data_seed=13", "toy, data_seed=21"]


def test_rows_to_train_on_are_those_of_each_class(tmp_path: Path) -> None:
    variant_run(tmp_path, "few", seed=1, **{"task.k_shot": 16, "task.n_train": None, "task.words": ["a", "b", "c"]})
    variant_run(tmp_path, "all", seed=2, **{"task.k_shot": None, "task.n_train": 1000, "task.words": ["a", "b", "c"]})
    runs = read(tmp_path).runs
    assert dict(zip(runs["run_id"], runs["n_train"], strict=True)) == {"few": 48, "all": 1000}


def test_every_trial_of_a_search_is_shown(tmp_path: Path) -> None:
    """With its dev score on the seed that all trials have, whatever seeds the chosen one has besides."""
    folder = tmp_path / "demo"
    for lr, dev in ((1e-3, 0.6), (1e-2, 0.8), (1e-4, 0.5)):
        whole_run(folder, dev, test=0.7, lr=lr, seed=1)
    whole_run(folder, 0.4, test=0.6, lr=1e-2, seed=2)
    whole_run(folder, status="diverged", lr=0.1, seed=1)
    whole_run(folder, 0.9, optimizer="adamw", lr=1e-3, seed=1)  # nothing was searched
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (folder / "tables/trials.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| zo_sgd", "| adamw"))]
    assert rows == [
        "| zo_sgd | toy / full | lr=0.01 | 80.0 | 65.0 ± 7.1 | lr=0.0001: 50.0; lr=0.001: 60.0; lr=0.1: diverged |"
    ]
    with (folder / "tables/trials.csv").open(newline="") as file:
        data = [(row["point"], row["status"], row["dev"], row["chosen"]) for row in csv.DictReader(file)]
    assert [row[1:] for row in data] == [
        ("completed", "0.500000", "no"), ("completed", "0.600000", "no"), ("completed", "0.800000", "yes"),
        ("diverged", "", "no"),
    ]  # fmt: skip


def test_a_suite_without_a_search_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path / "demo", lr=1e-3, seed=1)
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "No method of this suite was searched" in (tmp_path / "demo/tables/trials.md").read_text()


def test_what_tells_no_more_is_not_said(tmp_path: Path) -> None:
    for k, n_dev in ((16, 32), (512, 1024)):
        variant_run(tmp_path, f"k{k}", **{"task.k_shot": k, "task.n_dev": n_dev})
    variant_run(
        tmp_path, "adamw", optimizer="adamw", **{"task.k_shot": 16, "task.n_dev": 32}
    )  # told of the task for all
    assert [(c.method, c.setting) for c in choose(read(tmp_path).runs)] == [
        ("adamw", "toy, k_shot=16"),
        ("zo_sgd", "toy, k_shot=16"),
        ("zo_sgd", "toy, k_shot=512"),
    ]


def test_what_an_older_record_does_not_know_was_off(tmp_path: Path) -> None:
    variant_run(tmp_path, "older", lr=0.1)
    variant_run(tmp_path, "off", lr=0.2, **{"scheme.centred": False})
    variant_run(tmp_path, "on", lr=0.1, **{"scheme.centred": True})
    assert [(c.method, c.n_trial) for c in choose(read(tmp_path).runs)] == [
        ("zo_sgd, centred=false", 2), ("zo_sgd, centred=true", 1),
    ]  # fmt: skip
    whole = {f"{group}.{name}": value for group, off in identity.GROUP_OFF.items() for name, value in off.items()}
    assert identity.OFF | whole == variants.LATER


def test_every_table_names_the_variants(tmp_path: Path) -> None:
    """What is shown in the columns, whose models start as they are shown it; what is done in the rows."""
    for aligned in (True, False):
        for q in (1, 2):
            said = {"task.alignment": aligned, "optimizer.q": q}
            variant_run(tmp_path / "demo", f"r{aligned}{q}", start=0.5 + 0.1 * aligned, **said)
    (tmp_path / "demo/rFalse2.jsonl").unlink()
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    for name in ("accuracy", "memory", "throughput", "equal_forwards", "equal_seconds", "equal_memory"):
        text = (tmp_path / "demo/tables" / f"{name}.md").read_text()
        assert "zo_sgd, q=2" in text, name
        assert "toy, alignment=false" in text, name
        assert ",task.alignment=true optimizer.q=2," in (tmp_path / "demo/tables" / f"{name}.csv").read_text(), name
    accuracy = (tmp_path / "demo/tables/accuracy.md").read_text()
    assert "| optimizer | toy, alignment=false / full | toy, alignment=true / full | trials |" in accuracy
    assert "| start (zero-shot) | 50.0 (1) | 60.0 (1) | — |" in accuracy
    assert "| zo_sgd, q=2 | — | " in accuracy
    (command,) = [line for line in accuracy.splitlines() if "runners.train" in line]
    assert "task=toy scheme=full optimizer=zo_sgd" in command
    assert command.endswith("task.alignment=false optimizer.q=2 seed=1")
