"""`analysis.build` on whole folders, and what analysis imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up import two_methods, whole_run

from analysis import build


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return two_methods(tmp_path)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_build_writes_the_same_bytes_each_time(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records := suite / "results" / "demo").mkdir(parents=True)
    for path in suite.glob("*.jsonl"):
        path.rename(records / path.name)
    (records / "notes.txt").write_text("not a record")
    assert build.main(["--records", str(suite / "results"), "--out", str(suite / "one")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "**73.0 ± 2.6 (3) ↓**" in printed.out
    # One suite folder, its files renamed so that they are met in another order.
    for place, path in enumerate(sorted(records.glob("*.jsonl"), reverse=True)):
        path.rename(records / f"{place:02}.jsonl")
    assert build.main(["--records", str(records), "--out", str(suite / "two")]) == 0
    written = everything(suite / "one")
    assert written == everything(suite / "two")
    equal = ("equal_forwards", "equal_seconds", "equal_memory")
    names = ("accuracy", "trials", "memory", "throughput", *equal, "time_to_target", "published")
    tabled = [f"demo/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    figures = ("accuracy", *(f"accuracy_vs_{axis}" for axis in ("forwards", "seconds", "memory")))
    drawn = [f"demo/figures/{name}.{kind}" for name in figures for kind in ("csv", "png", "svg")]
    assert sorted(written) == sorted([*tabled, *drawn])
    assert all(str(suite / "one" / name) in printed.out for name in written)
    assert str(suite).encode() not in b"".join(written.values())
    frame = pd.read_csv(suite / "one" / "demo" / "tables" / "accuracy.csv")
    assert frame.set_index(["optimizer", "task"]).loc[("zo_sgd", "toy"), "test"] == pytest.approx(0.73)


def test_build_with_nothing_says_so_and_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert build.main(["--records", str(folder), "--out", str(tmp_path)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"Nothing to build: no readable record (*.jsonl) in {folder} or in a folder of it.\n"


def test_build_goes_on_past_unreadable_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(tmp_path / "demo", status="oom")
    (tmp_path / "demo" / "bad.jsonl").write_text('{"kind": "step"}\nx\n')
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"left out: {tmp_path / 'demo' / 'bad.jsonl'}:1: the first line must be of kind 'run'")
    assert said.err.count("\n") == 1
    assert "| zo_sgd | oom | 1 |" in said.out


def test_analysis_imports_one_way_and_nothing_heavy() -> None:
    allowed = {
        "lines": {"variants"},
        "edges": set(),
        "variants": set(),
        "verification": set(),
        "paired": set(),
        "load": {"lines", "variants", "verification"},
        "select": {"edges", "lines", "variants"},
        "render": set(),
        "plan": {"lines", "select", "variants"},
        "tables": {"edges", "lines", "numbers", "paired", "render", "select", "variants"},
        "trials": {"edges", "numbers", "render", "select"},
        "usage": {"lines", "numbers", "render", "select", "variants"},
        "numbers": {"render"},
        "costs": {"load", "render", "select", "variants"},
        "published": {"edges", "lines", "render", "select", "variants"},
        "plots": {"load", "select", "variants"},
        "dots": {"load", "plots", "select"},
        "profile_rows": {"load"},
        "profile_tables": {"profile_beside", "profile_rows", "render"},
        "profile_beside": {"profile_rows", "render"},
        "profile_fits": {"profile_rows", "render"},
        "profile_plots": {"plots", "profile_rows"},
        "profile_build": {
            *("load", "plots", "profile_beside", "profile_fits", "profile_plots", "profile_rows", "profile_tables"),
            "render",
        },
        "build": {
            *(
                "costs",
                "dots",
                "load",
                "plan",
                "plots",
                "profile_build",
                "profile_rows",
                "published",
                "render",
                "select",
            ),
            *("tables", "trials", "usage"),
        },
        "board": {"costs", "load", "overhead", "select"},
        "page": set(),
        "leaderboard": {"board", "build", "edges", "load", "overhead", "page", "render", "select"},
        "overhead": {"lines", "select", "variants"},
    }
    assert set(allowed) == {path.stem for path in Path(build.__file__).parent.glob("[!_]*.py")}
    outside = set(sys.stdlib_module_names) | {"pandas", "matplotlib"}
    for name, inside in allowed.items():
        imported = set()
        for node in ast.walk(ast.parse((Path(build.__file__).parent / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = [f"analysis.{alias.name}" for alias in node.names]
                imported |= set(whole) if node.module == "analysis" else {node.module or ""}
        own = {module.removeprefix("analysis.") for module in imported if module.startswith("analysis")}
        assert own <= inside
        assert {module.split(".")[0] for module in imported} <= outside | {"analysis"}
