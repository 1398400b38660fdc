"""What tests of whole runs share: a tiny run on the CPU, in this process, and everything it left."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import shipped
import torch
from omegaconf import OmegaConf

with contextlib.suppress(pytest.skip.Exception):  # where there is no triton
    import interpreted  # noqa: F401 (before triton is imported)

from runners import execute as execution
from runners import launch, suite, train
from runners.compose import spec_of
from runners.job import Ended, of_machine
from zobench import provenance
from zobench.run import Bench, build
from zobench.spec import RunSpec
from zobench.tasks import toy
from zobench.trajectory import SUFFIX, Entry, read

SLOW = ("test_sweep_faults", "test_warm", "test_profile")  # a test of these may take half a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first: where several processes share the tests, none is left to wait for at the end."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


# 12 steps of 8 examples: an evaluation at 0, 4, 8 and 12, a step row at 5, 10 and 12.
TINY = (
    "model=tiny task=toy device=cpu progress=false budget=steps budget.amount=12 budget.n_eval=3 batch_size=8 "
    "log_every=5 task.n_train=64 task.n_dev=40 task.n_test=40 optimizer.lr=1e-4"
).split()


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run that is over, for whatever reason. ``bench``: its model in memory, None when nothing had to be run."""

    path: Path
    rows: list[dict[str, Any]]
    bench: Bench | None
    repeated: bool

    @property
    def end(self) -> dict[str, Any]:
        return self.rows[-1]

    @property
    def trajectory(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".jsonl") + SUFFIX)

    @property
    def weights(self) -> list[torch.Tensor]:
        """Bits of the trainable weights, as they are now: after a run, those of the chosen checkpoint."""
        assert self.bench is not None
        return [p.clone() for p in self.bench.trainable]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]

    def evals(self, split: str) -> dict[int, dict[str, float]]:
        """Metrics by step; a later row of a step replaces the earlier one, as analysis reads them."""
        return {row["step"]: row["metrics"] for row in self.of_kind("eval") if row["split"] == split}

    def entries(self) -> list[Entry]:
        """The trajectory without evaluations that moved nothing (an evaluation begun twice leaves one)."""
        _, entries = read(self.trajectory)
        return [e for e in entries if e.ops or not e.evaluation]


class Lab:
    """Makes tiny runs in ``folder``, all in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.benches: list[Bench] = []
        monkeypatch.setattr(execution, "build", self._build)

    def spec(self, *overrides: str, out: str = "runs", **top: Any) -> RunSpec:
        """``overrides`` on top of TINY; ``top``: values of the top level that have no part in what a run is."""
        spec = _composed(overrides)
        return dataclasses.replace(spec, config={**spec.config, "out": str(self.folder / out), **top})

    def arguments(self, *overrides: str, out: str = "runs") -> list[str]:
        """Of the command line of such a run."""
        return [*TINY, *overrides, f"out={self.folder / out}"]

    def path(self, *overrides: str, out: str = "runs") -> Path:
        """Of the record of such a run."""
        spec = self.spec(*overrides, out=out)
        return self.folder / out / f"{spec.run_id}.jsonl"

    def run(self, *overrides: str, out: str = "runs", **top: Any) -> Ran:
        self.benches.clear()
        outcome = execution.execute(self.spec(*overrides, out=out, **top), "a test", quiet=True)
        return self._ran(outcome.path, outcome.repeated)

    def stopped(self, *overrides: str, out: str = "runs", **top: Any) -> Ran:
        """The same for a run that a KeyboardInterrupt stops."""
        self.benches.clear()
        with pytest.raises(KeyboardInterrupt):
            execution.execute(self.spec(*overrides, out=out, **top), "a test", quiet=True)
        return self._ran(self.path(*overrides, out=out), False)

    def _build(self, spec: RunSpec) -> Bench:
        self.benches.append(build(spec))
        return self.benches[-1]

    def _ran(self, path: Path, repeated: bool) -> Ran:
        bench = self.benches[-1] if self.benches else None
        return Ran(path, [json.loads(line) for line in path.read_text().splitlines()], bench, repeated)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunSpec:
    return spec_of([*TINY, *overrides])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def make_submission(folder: Path, *overrides: str) -> Path:
    """A run's record, as if made from a clean commit of this project."""
    spec = spec_of([*TINY, *overrides])
    path = execution.execute(
        dataclasses.replace(spec, config={**spec.config, "out": str(folder)}), "python -m runners.train", quiet=True
    ).path
    rewrite(path, lambda rows: rows[0].update(git={"sha": provenance.git()["sha"] or "a" * 40, "dirty": False}))
    return path


def rewrite(record: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """The record with other rows."""
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    change(rows)
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_submission(tmp_path_factory.mktemp("made") / "runs", "optimizer=zo_sgd")


@pytest.fixture
def record(original: Path, tmp_path: Path) -> Path:
    """A submission of one good record and its trajectory."""
    return Path(shutil.copytree(original.parent, tmp_path / "submission")) / original.name


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]
MakeSuite = Callable[..., list[str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """``cli(module, *arguments)`` is ``python -m module *arguments``, in this process."""

    def call(module: ModuleType, *arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        monkeypatch.setattr(train, "_exit_code", 0)
        capsys.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _generate_toy_once() -> Iterator[None]:
    """The rows are a pure function of the split and nobody changes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "generate", functools.cache(toy.generate))
        yield


@pytest.fixture(scope="session", autouse=True)
def _load_the_shipped_model_once() -> Iterator[None]:
    """Most of what a tiny run does before its first step would be that."""
    with pytest.MonkeyPatch.context() as patch:
        shipped.once(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ask_git_once() -> Iterator[None]:
    """Of each checkout: nobody changes the code while it is tested."""
    asked = functools.cache(lambda _, git=provenance.git: git())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "git", lambda: dict(asked(provenance.__file__)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Here and in processes of tests: the matrices are tiny, and threads of torch that wait busily for a shared core
    make a run ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _collect_rarely() -> Iterator[None]:
    """What was imported stays: to search it for garbage takes half a second each time. What tests import later is
    searched, but not as often as Python would."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, int, BaseException], None]:
    """``fail_once(owner, name, n, error)``: the n-th call (from 1) of a function raises before it does anything, the
    others work."""

    def arm(owner: Any, name: str, n: int, error: BaseException) -> None:
        original, calls = getattr(owner, name), 0

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n:
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    return arm


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk("8k")``: a folder with room for so much, or with more room from now on; "8k,ro": to read only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def make(size: str) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size}"
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
        except OSError:
            pytest.skip("no mount on this system")
        if done.returncode != 0:
            pytest.skip("mounting a small disk needs root")
        mounted = True
        return folder

    yield make
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def make_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSuite:
    """``make_suite(**keys)`` writes a suite of tiny runs and returns the arguments that start it."""

    def make(**keys: Any) -> list[str]:
        folder = tmp_path / "suites"
        folder.mkdir(exist_ok=True)
        OmegaConf.save({"common": TINY, **keys}, folder / "pair.yaml")
        monkeypatch.setattr(suite, "SUITES", folder)
        return ["suite=pair", f"out={tmp_path / 'pair'}"]

    return make


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Launches run in this process; the overrides of every job that was launched."""
    launched: list[list[str]] = []

    def call(self: launch.Launch, jobs: Sequence[Sequence[str]], more: object) -> list[Ended]:
        del self, more
        launched.extend(map(list, jobs))
        return [of_machine(overrides) for overrides in jobs]

    monkeypatch.setattr(launch.Launch, "__call__", call)
    return launched


FailOnce = Callable[[Any, str, int, BaseException], None]
ZO, LORA, ADAMW = ("optimizer=zo_sgd",), ("optimizer=zo_sgd", "scheme=lora"), ("optimizer=adamw",)

COURSES = {  # steps large enough that the last checkpoint is the chosen one
    "fp32": ("precision=fp32",),
    "bf16": ("precision=bf16", "optimizer.lr=1e-3"),
    "bf16_sr": ("precision=bf16_sr",),
    "bf16_master": ("precision=bf16_master",),
    "fp16": ("precision=fp16", "optimizer.lr=1e-3"),
    "sphere-q3": ("optimizer.distribution=sphere", "optimizer.q=3"),
    "decay-cosine": ("optimizer.weight_decay=10", "schedule=cosine", "precision=bf16_sr", "optimizer.lr=3e-4"),
    "one-sided-linear": ("optimizer.sides=one", "schedule=linear", "schedule.warmup=0.3", "precision=bf16_master"),
    "lora-rademacher": ("scheme=lora", "optimizer.distribution=rademacher", "optimizer.weight_decay=1"),
}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Equal to the bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
