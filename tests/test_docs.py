"""README, docs and committed tables say what the records say."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from analysis import build, dots, leaderboard, plots
from runners import methods, tasks_page
from runners.multirun import expand
from runners.suite import load

ROOT = Path(__file__).resolve().parent.parent
SHOWN = [
    *("ablation_batch_size", "ablation_distribution", "ablation_history", "ablation_zo_eps"),
    *("lab", "lab_budget", "lab_precision", "lab_probe", "lab_schemes", "lab_tasks"),
    *("zobench_alignment_lab", "zobench_block_lab", "zobench_hybrid_lab", "zobench_query_budget_lab"),
    *("zobench_sparsity_lab", "zobench_sst2_lab"),
]
SUITES = sorted(path.parent for path in ROOT.glob("results/*/README.md"))


def test_there_are_committed_results() -> None:
    assert [path.name for path in SUITES] == SHOWN


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.name)
def test_committed_tables_regenerate_byte_for_byte(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are compared by the data behind them, so one suite's are drawn and the others' files left empty."""
    if suite.name != "lab_precision":
        for module in (dots, plots):
            monkeypatch.setattr(module, "draw", lambda *_: Figure())
        monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())
    copied = tmp_path / "records" / suite.name
    copied.mkdir(parents=True)
    for record in [*suite.glob("*.jsonl"), *suite.glob("plan.json")]:
        shutil.copy(record, copied)
    assert build.main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 0
    made = {p.relative_to(tmp_path / "out" / suite.name): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    kept = {p.relative_to(suite) for folder in ("tables", "figures") for p in (suite / folder).glob("*")}
    assert set(made) == kept
    for name, path in made.items():
        if path.suffix not in (".png", ".svg"):
            assert path.read_bytes() == (suite / name).read_bytes(), name


def test_the_committed_leaderboard_regenerates_byte_for_byte(tmp_path: Path) -> None:
    """Of committed suites alone: who has run `make demo` has records of its beside them."""
    records, out = tmp_path / "records", tmp_path / "out"
    records.mkdir()
    for folder in [*SUITES, ROOT / "results/profile"]:
        (records / folder.name).symlink_to(folder)
    assert leaderboard.main(["--records", str(records), "--out", str(out)]) == 0
    for name in ("index.html", "LEADERBOARD.md"):
        same = (out / name).read_bytes() == (ROOT / "results/leaderboard" / name).read_bytes()
        assert same, f"{name} is not what the records say: run make leaderboard"


def test_the_lab_plan_is_what_the_suite_says() -> None:
    suite, _ = load("lab", None)
    cells = json.loads((ROOT / "results/lab/plan.json").read_text())["cells"]
    lines = [[*suite.common, *line] for line in suite.runs]
    runs = [dict(override.split("=") for override in kind) for line in lines for kind in expand(line)]
    assert [(cell["optimizer"], cell["scheme"]) for cell in cells] == [(r["optimizer"], r["scheme"]) for r in runs]


@pytest.mark.parametrize("plan", sorted(ROOT.glob("results/*/plan.json")), ids=lambda path: path.parent.name)
def test_what_committed_plans_say_is_there(plan: Path) -> None:
    said = json.loads(plan.read_text())
    assert said["n_run"] == len(list(plan.parent.glob("*.jsonl")))
    name, scale = plan.parent.name, None
    if name.endswith("_lab"):
        name, scale = name.removesuffix("_lab"), "lab"
    suite, _ = load(name, scale)
    assert (said["seeds"], said["tune_seeds"]) == (suite.seeds, suite.tune_seeds)
    assert {cell["trials"] for cell in said["cells"]} <= {1, 4}  # 1: without training
    assert "Not run yet" not in (plan.parent / "tables/accuracy.md").read_text()


@pytest.mark.parametrize("suite", ["lab", "zobench_sst2_lab"])
def test_readme_shows_the_table(suite: str) -> None:
    _, *models = (ROOT / "results" / suite / "tables/accuracy.md").read_text().split("\n## ")
    for model in models:
        rows = [line for line in model.splitlines() if line.startswith("|")]
        assert "\n".join(rows) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("suite", ["lab", "lab_schemes", "lab_tasks", "zobench_sst2_lab"])
def test_a_page_says_how_many_searches_ended_at_the_edge_of_their_grid(suite: str) -> None:
    with (ROOT / "results" / suite / "tables/accuracy.csv").open(newline="") as file:
        searches = [row for row in csv.DictReader(file) if int(row["n_trial"]) > 1]
    largest, smallest = (sum("lr" in row[name].split() for row in searches) for name in ("highest", "lowest"))
    page = " ".join((ROOT / "results" / suite / "README.md").read_text().split())
    said = re.search(
        r"largest of its grid \(↑ in the table\) in (\d+) of (\d+) searches(?: and .* \(↓\) in (\d+))?", page
    )
    assert said
    assert (int(said[1]), int(said[2])) == (largest, len(searches))
    assert said[3] is None or int(said[3]) == smallest


def test_every_file_that_the_docs_link_is_there() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_the_precision_page_says_what_the_records_say() -> None:
    """The accuracies, from the records; the drifts come from replays on the GPU that made them."""
    with (ROOT / "results/lab_precision/tables/accuracy.csv").open(newline="") as file:
        measured = {row["precision"]: f"{100 * float(row['test']):.1f}" for row in csv.DictReader(file)}
    page = (ROOT / "docs/precision.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    said = {cells[1]: cells[5] for cells in rows if len(cells) == 8 and cells[1] in measured}
    assert said == measured


def test_the_models_page_names_every_yaml() -> None:
    page = (ROOT / "docs/models.md").read_text()
    assert [path.stem for path in sorted(ROOT.glob("conf/model/*.yaml")) if f"`{path.stem}`" not in page] == []


def test_the_methods_page_says_what_docstrings_and_yamls_say() -> None:
    assert methods.PAGE.read_text() == methods.page(), "run make methods"


def test_every_method_states_its_equation_its_cost_and_what_released_code_does() -> None:
    page = methods.PAGE.read_text()  # which the test before holds to
    sections = {text.splitlines()[0]: text for text in page.split("\n## ")[1:]}
    names = sorted(path.stem for path in (ROOT / "conf/optimizer").glob("[!_]*.yaml"))
    assert list(sections) == names
    for name in names:
        row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert all(cells), row
        equation = re.search(r"^```\n(.+?)\n```$", sections[name], flags=re.M | re.S)
        assert equation, f"{name} has no equation: in the docstring, or in the yaml under method"
        assert "theta" in equation[1] or name in ("none", "in_context")
        for label in methods.FIELDS:
            said = re.findall(rf"^- {label}: (.+)$", sections[name], flags=re.M)
            assert len(said) == 1, f"{name} does not say: {label}"


def test_a_yaml_of_a_shared_class_says_what_is_its_own() -> None:
    """Its equation is not that of another yaml, where its settings make it another method."""
    page = methods.PAGE.read_text()
    of_zo_sgd = ("zo_sgd", "lezo", "zo_sgd_block", "zo_sgd_sparse", "sparse_mezo")
    texts = [page.split(f"\n## {name}\n")[1].split("```")[1] for name in of_zo_sgd]
    assert len(set(texts)) == len(texts)


def test_the_tasks_page_says_what_the_yamls_say() -> None:
    assert tasks_page.PAGE.read_text() == tasks_page.page(), "run make tasks"
