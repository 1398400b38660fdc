"""analysis: the leaderboard's entries, its page as one safe file, and the time that many records take."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import bench_analysis
import pytest
from made_up import read, whole_run

from analysis import board, leaderboard, overhead, page

HOSTILE = "</script><!--<img src=x onerror=alert(1)>&amp;{{DATA}}"


def test_an_entry_says_all_that_the_page_shows(tmp_path: Path) -> None:
    for seed, test in ((1, 0.70), (2, 0.80)):
        whole_run(tmp_path, lr=0.1, seed=seed, test=test, command=f"run {seed}")
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.1)
    whole_run(tmp_path, optimizer="lost", status="oom")
    entries, parts = board.entries(read(tmp_path), {})
    (entry,) = entries
    assert (entry["optimizer"], entry["score"], entry["seeds"], entry["trials"]) == ("zo_sgd", 75.0, 2, 2)
    assert entry["edge"] == "↓"
    assert "| 2 ↓ | no |" in leaderboard.render.markdown(leaderboard.table(entries))
    assert (entry["forwards"], entry["seconds"], entry["memory"], entry["overhead"]) == (402, 22.0, 1.0, None)
    assert (entry["verified"], entry["confirmed"], entry["hardware"]) == (0, False, "x86_64, 2 CPUs")
    assert entry["curve"] == [[0, 50, 50, 50], [200, 60, 60, 60], [400, 80, 80, 80]]
    assert [run["command"] for run in entry["runs"]] == ["run 1", "run 2"]
    config = {key: parts[place] for key, place in entry["config"].items()}
    assert config["optimizer"]["lr"] == 0.1
    assert not {"paper", "search", "notes"} & set(config["optimizer"])
    assert "seed" not in config


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        (["model.path=/m/${model.name}", "lr=[1,2]"], "run model.path=/m/${model.name} lr=[1,2]"),
        (["model.path=/m/${model.name}", "lr=[1,2]"], "run 'model.path=/m/${model.name}' 'lr=[1,2]'"),
        (["note=it is mine", "seed=1"], "run 'note=it is mine' seed=1"),
        (["optimizer=zo_sgd", "seed=1"], "run optimizer=zo_sgd seed=1"),
        (["model.chat_template='{{x}}'"], "run model.chat_template='{{x}}'"),
        (["note=it's", "out=a;b"], "run note=it's out=a;b"),
        (["note=it's mine"], """run 'note=it'"'"'s mine'"""),
        ([], ""),
    ],
)
def test_a_shell_takes_a_command_as_it_was_given(arguments: list[str], recorded: str) -> None:
    """Joined by spaces, as older records have it, or quoted. A shell reads them, not a library of ours."""
    said = board.pasteable(recorded)
    assert board.pasteable(said) == said
    script = f'run() {{ printf "%s\\n" "$@"; }}\n{said}'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (ran.stdout.splitlines(), ran.stderr) == (arguments or [""] * bool(said), "")


def test_the_overhead_is_that_of_the_profile_of_such_a_run(tmp_path: Path) -> None:
    """The run has 10 tokens an example."""
    row = {
        "kind": "profile", "model": "tiny", "scheme": "full", "optimizer": "zo_sgd", "precision": "fp32",
        "batch_size": 16, "length": 64, "cost_overhead": 3.0, "gradient_checkpointing": False,
        "hardware": {"device": "cpu", "name": "x86_64", "n_cpu": 2}, "status": "completed",
    }  # fmt: skip
    other = [{"optimizer": "adamw"}, {"scheme": "lora"}, {"precision": "bf16"}, {"batch_size": 8}, {"q": 4},
             {"hardware": {**row["hardware"], "n_cpu": 3}}, {"cost_overhead": None}, {"length": None}]  # fmt: skip
    folder = tmp_path / "profile"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({**row, "cost_overhead": 9.0, **more}) + "\n" for more in other))
    whole_run(tmp_path / "demo", optimizer="zo_sgd")
    records = read(tmp_path / "demo")

    def shown() -> float | None:
        (entry,), _ = board.entries(records, overhead.measured(folder))
        found: float | None = entry["overhead"]
        return found

    assert shown() is None
    rows = [{**row, "length": length, "cost_overhead": x} for length, x in ((64, 3.0), (16, 2.0), (256, 4.0))]
    (folder / "b.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"kind": "pro')
    assert shown() == 2.0
    whole_run(tmp_path / "demo", optimizer="zo_sgd", batch_size=8, run_id="8")  # now each is a variant
    records = read(tmp_path / "demo")
    found = {entry["optimizer"]: entry["overhead"] for entry in board.entries(records, overhead.measured(folder))[0]}
    assert found == {"zo_sgd, batch_size=8": 9.0, "zo_sgd, batch_size=16": 2.0}


def test_equal_parts_of_configs_are_kept_once(tmp_path: Path) -> None:
    for optimizer in ("a", "b", "c"):
        whole_run(tmp_path, optimizer=optimizer, task=optimizer)
    entries, parts = board.entries(read(tmp_path), {})
    assert len(entries) == 3
    assert len({json.dumps(part) for part in parts}) == len(parts)


def _data(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_whatever_a_record_holds_stays_data(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer=HOSTILE, task=HOSTILE, run_id="r", command=HOSTILE)
    entries, parts = board.entries(read(tmp_path), {})
    text = page.html(entries, parts, HOSTILE)
    assert _data(text)["entries"][0]["optimizer"] == HOSTILE
    assert text.count("</script>") == page.html([], [], "").count("</script>")
    assert "<img" not in text
    assert "{{" not in text.replace("{{DATA}}", "")  # every place of the template is filled in
    assert text.count("{{DATA}}") == json.dumps(_data(text)).count("{{DATA}}") + 1  # and nothing is filled in twice
    markdown = (leaderboard.render.markdown(leaderboard.table(entries))).replace(r"\|", "")
    assert "<img" not in markdown
    assert "<!--" not in markdown


def test_the_policy_lets_the_two_scripts_run_and_nothing_else(tmp_path: Path) -> None:
    whole_run(tmp_path)
    text = page.html(*board.entries(read(tmp_path), {}), "")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", text, re.S)
    ]
    assert len(hashes) == 2
    assert f"script-src {' '.join(hashes)};" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.findall(r'(?:src|href)="', text.split('<script type="application/json"')[0])


def test_the_table_library_is_the_one_that_was_published() -> None:
    source = json.loads((page.VENDOR / "SOURCE.json").read_text())
    assert {path.name for path in page.VENDOR.iterdir()} == {*source["sha256"], "SOURCE.json"}
    for name, digest in source["sha256"].items():
        assert hashlib.sha256((page.VENDOR / name).read_bytes()).hexdigest() == digest
    assert f"Tabulator v{source['version']} " in (page.VENDOR / "tabulator.min.js").read_text()[:60]


def test_the_command_writes_the_same_bytes_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaderboard.main(["--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("Nothing to show")
    whole_run(tmp_path / "a" / "demo", seed=1)
    whole_run(tmp_path / "b" / "demo", seed=1)
    for folder in ("a", "b"):
        assert leaderboard.main(["--records", str(tmp_path / folder), "--out", str(tmp_path / folder / "page")]) == 0
    for name in ("index.html", "LEADERBOARD.md"):
        assert (tmp_path / "a/page" / name).read_bytes() == (tmp_path / "b/page" / name).read_bytes()
    assert "| zo_sgd | full | fp32 | 400 forwards | demo |" in (tmp_path / "a/page/LEADERBOARD.md").read_text()


def test_many_records_take_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench-analysis` measures 10,000; this is its path, and a twentieth of its limit for a hundredth of them."""
    monkeypatch.setattr(bench_analysis.build, "write_figures", lambda *_: [])
    seconds, peak = bench_analysis.measure(tmp_path, 100)
    assert seconds < bench_analysis.LIMIT_S / 20
    assert peak > 0


def _rows(n_train: int, n_dev: int, n_test: int) -> dict[str, Any]:
    return {"train": {"n": n_train}, "dev": {"n": n_dev}, "test": {"n": n_test}}


def test_rows_and_data_seed_are_part_of_the_task_even_of_a_lone_run(tmp_path: Path) -> None:
    path = whole_run(tmp_path, rows=_rows(8, 4, 2))
    lines = path.read_text().splitlines()
    head = json.loads(lines[0])
    head["config"]["task"] = {"name": "toy", "data_seed": 77}
    path.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    (entry,), _ = board.entries(read(tmp_path), {})
    assert entry["task"] == "toy (8/4/2 rows, data seed 77)"
    text = leaderboard.render.markdown(leaderboard.table([entry]))
    assert "## toy (8/4/2 rows, data seed 77) · tiny" in text


@pytest.mark.parametrize(
    ("seeds", "verified", "said"),
    [(1, 0, "no"), (1, 1, "yes (1 seed)"), (2, 2, "yes (2 seeds)"), (3, 2, "2 of 3"), (3, 3, "yes")],
)
def test_verified_of_few_seeds_reads_so(tmp_path: Path, seeds: int, verified: int, said: str) -> None:
    for seed in range(seeds):
        whole_run(tmp_path, seed=seed)
    records = read(tmp_path)
    records.runs["verified"] = [i < verified for i in range(seeds)]
    (entry,), _ = board.entries(records, {})
    assert f"| {said} |" in leaderboard.render.markdown(leaderboard.table([entry]))
