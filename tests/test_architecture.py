"""Walls of the house: who may import whom, and what every file keeps to. See docs/design.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zobench", "runners", "analysis")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 300

# Importing package -> packages that it may not import, anywhere in a file.
FORBIDDEN = {
    "zobench": {"hydra", "omegaconf", "wandb", "pandas", "matplotlib", "runners", "analysis"},
    "analysis": {"torch", "zobench", "runners", "hydra", "omegaconf", "wandb"},
    "runners": {"analysis"},
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """Full dotted names of all that a file imports, also inside functions; relative imports made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "a" / "b" / "c.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import one.x\nfrom two import y\nfrom . import z\nfrom ..d import e\n"
        "def f():\n    import three\n    importlib.import_module('four')\n    __import__('five')\n"
    )
    assert set(_imports(path)) == {"one.x", "two.y", "a.b.z", "a.d.e", "three", "four", "five"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    crossed = [
        f"{_name(path)} imports {name}"
        for path in FILES
        if path.is_relative_to(ROOT / package)
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not crossed


def test_the_engine_knows_no_method_task_or_model() -> None:
    crossed = [
        f"{_name(path)} imports {name}"
        for path in (ROOT / "zobench" / "engine").rglob("*.py")
        for name in _imports(path)
        if name.split(".")[0] == "zobench" and name.split(".")[1:2] != ["engine"]
    ]
    assert not crossed


def test_a_bare_import_is_quiet_and_light() -> None:
    program = (
        "import sys, zobench, zobench.optim.zo_sgd, torch\n"
        "heavy = {'transformers', 'peft', 'datasets', 'triton', 'hydra', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_files_stay_short_enough_to_read_at_once() -> None:
    long = {_name(path): n for path in FILES if (n := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for path in FILES:
        if not path.is_relative_to(ROOT / "zobench"):
            continue
        tree = ast.parse(path.read_text())
        if tree.body and not ast.get_docstring(tree):
            silent.append(_name(path))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                silent += [] if ast.get_docstring(node) else [f"{_name(path)}: {node.name}"]
    assert not silent


def _tracked() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(rb"(?<![\w.~}-])/(?:home|work|root|Users|mnt|scratch|srv)/\w")
    found = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" not in data and (match := place.search(data)):
            found.append(f"{_name(path)}: {data[match.start() : match.start() + 40]!r}")
    assert not found
