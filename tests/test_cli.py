"""What the commands say, word by word where it is short, and what every yaml under conf/ must be."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Cli, Lab
from omegaconf import OmegaConf

from runners import execute as execution
from runners import replay, show, train
from runners.compose import check, compose, spec_of
from runners.composition import CONF
from runners.piped import CODE, piped
from runners.schema import GROUPS
from zobench import run as runs

TASKS = ", ".join(sorted(path.stem for path in (CONF / "task").glob("[!_]*.yaml")))
OPTIMIZERS = ", ".join(sorted(path.stem for path in (CONF / "optimizer").glob("[!_]*.yaml")))
OPTIMIZER_KEYS = (
    "_target_, anneal_every, anneal_factor, anneal_ratio, blocks, distribution, fresh_batches, lr, mask, mask_scope, "
    "n_block, name, notes, order, paper, q, q_schedule, recommended, resample, search, sides, sparsity, weight_decay, "
    "zo_eps"
)
TOP_KEYS = (
    "batch_size, budget, calibration, compile, cuda_graphs, data, device, eval_batch_size, force, log_every, loss, "
    "micro_batch_size, model, optimizer, out, packed, precision, progress, save, schedule, scheme, seed, start, task, "
    "wandb"
)
DEVICE_KINDS = "must be auto, cpu, cuda or cuda:<number>"


@pytest.fixture
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"loaded {args} {kwargs}")

    for owner, name in ((AutoModelForCausalLM, "from_pretrained"), (AutoTokenizer, "from_pretrained"),
                        (runs, "examples"), (execution, "Record")):  # fmt: skip
        monkeypatch.setattr(owner, name, loaded)


# ---- what train refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("optimizer=zosgd", [f"optimizer=zosgd: must be one of {OPTIMIZERS} (did you mean zo_sgd?)"]),
        ("task=gsm", [f"task=gsm: must be one of {TASKS} (did you mean gsm8k?)"]),
        ("optimiser=zo_sgd", [f"optimiser: no such key; there are {TOP_KEYS} (did you mean optimizer?)"]),
        ("optimizer.lrr=1", [f"optimizer.lrr: no such key; optimizer has {OPTIMIZER_KEYS} (did you mean lr?)"]),
        ("data.rot=x", ["data.rot: no such key; data has root (did you mean root?)"]),
        ("+sede=1", ["+sede=1: no such key (did you mean seed?)"]),
        ("~seed", ["~seed: every run has it; set it with seed=VALUE"]),
        ("+optimizer=zo_sgd", ["+optimizer=zo_sgd: every run has it; set it with optimizer=VALUE"]),
        ("foo", ["foo: not of the form key=value (missing EQUAL at '<EOF>')"]),
        ("seed=1,2", ["seed=1,2: several values; -m runs each of them"]),
        ("seed=abc", ["seed=abc: Value 'abc' of type 'str' could not be converted to Integer"]),
        ("optimizer.lr=x", ["optimizer.lr=x: must be a number"]),
        ("optimizer.q=1.5", ["optimizer.q=1.5: must be a whole number"]),
        ("scheme=lora scheme.targets=q_proj", ["scheme.targets=q_proj: must be a list"]),
        ("seed=-1", ["seed=-1: must be >= 0 and <= 4294967295"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1: must be > 0"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan: must be > 0"]),
        ("schedule=cosine schedule.warmup=1", ["schedule.warmup=1: must be >= 0 and < 1"]),
        ("budget.unit=epochs", ["budget.unit=epochs: must be one of forwards, seconds, steps (did you mean steps?)"]),
        ("wandb.mode=on", ["wandb.mode=on: must be one of off, offline, online (did you mean online?)"]),
        ("out=/", ["out=/: its last part names the suite: letters, digits, '_', '.', '+', '-' alone"]),
        ("model.path=/no/such", ["model.path=/no/such: no such folder"]),
        ("model.path=/", ["model.path=/: holds no config.json, so it is no transformers model folder"]),
        ("model=opt-lab", ["model.path: needs a folder, since model.hub names no repository"]),
        ("model.weights=random", ["model.weights=random: needs model.architecture"]),
        ("task=sst2 data.root=/no/such", ["data.root=/no/such: no such folder"]),
        ("device=tpu", [f"device=tpu: {DEVICE_KINDS}"]),
        ("device=mps", [f"device=mps: {DEVICE_KINDS}"]),
        ("precision=bf16_sr optimizer=adamw",
         ["precision=bf16_sr: torch optimizers do not round stochastically; "
          "use bf16 or bf16_master with a first-order optimizer"]),
        ("precision=fp16 optimizer=sgd",
         ["precision=fp16: float16 gradients underflow without loss scaling; "
          "use bf16, bf16_master or fp32 with a first-order optimizer"]),
        ("precision.rounding=stochastic",
         ["precision.rounding=stochastic: needs precision.dtype=bfloat16, not float32"]),
        ("precision=tf32 precision.dtype=bfloat16",
         ["precision.matmul=tf32: needs precision.dtype=float32, not bfloat16"]),
        ("precision=bf16 +precision.matmul=tf32",
         ["precision.matmul=tf32: needs precision.dtype=float32, not bfloat16"]),
        ("precision=tf32 precision.matmul=tf3",
         ["precision.matmul=tf3: must be one of float32, tf32 (did you mean tf32?)"]),
        ("model.gradient_checkpointing=true",
         ["model.gradient_checkpointing=true: a zeroth-order optimizer has no backward pass to save for"]),
        ("optimizer=adamw optimizer.betas=[2,3]", ["optimizer: Invalid beta parameter at index 0: 2"]),
        ("optimizer._target_=no.such", ["optimizer._target_=no.such: cannot be imported (No module named 'no')"]),
        ("-m seed=1,2 optimizer=zo_sgd,zo_sg",
         [f"optimizer=zo_sg: must be one of {OPTIMIZERS} (did you mean zo_sgd?)"]),
        # Several at once, of several kinds.
        ("optimizer.q=0 batch_size=0 optimizer.sides=three optimizer.epss=1 task=tooy device=tpu seed=x",
         [f"task=tooy: must be one of {TASKS} (did you mean toy?)",
          f"optimizer.epss: no such key; optimizer has {OPTIMIZER_KEYS} (did you mean zo_eps?)",
          "seed=x: Value 'x' of type 'str' could not be converted to Integer",
          "batch_size=0: must be >= 1", "optimizer.q=0: must be >= 1",
          "optimizer.sides=three: must be one of one, two", f"device=tpu: {DEVICE_KINDS}"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_nothing_is_loaded")
def test_a_config_that_cannot_be_run(cli: Cli, arguments: str, lines: list[str]) -> None:
    ran = cli(train, *arguments.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [f"error: {line}" for line in lines]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("_nothing_is_loaded")
def test_a_gpu_that_is_not_there(cli: Cli) -> None:
    ran = cli(train, "device=cuda")
    assert (ran.code, ran.err) == (
        2, "error: device=cuda: torch sees 0 CUDA devices here; use device=cpu or device=auto\n"
    )  # fmt: skip


def test_data_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    ran = cli(train, "task=sst2", f"data.root={tmp_path}", f"out={tmp_path / 'runs'}", "device=cpu")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: {tmp_path}/nyu-mll/glue/sst2/train.jsonl: No such file or directory; "
        "data.root must hold <repository>/<config>/<split>.jsonl\n"
    )


def test_a_model_that_cannot_be_loaded(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ran = cli(train, *TINY, f"model.path={folder}", f"out={tmp_path / 'runs'}")
    assert ran.code == 1
    assert ran.err.startswith(f"error: model tiny: {folder} cannot be loaded (")
    assert ran.err.endswith("); check model.path\n")
    assert ran.err.count("\n") == 1


# ---- what train prints ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_help_and_config(cli: Cli) -> None:
    asked = cli(train, "--help")
    assert (asked.code, asked.err) == (0, "")
    assert asked.out.startswith("zobench: one fine-tuning run, or with -m several.\n")
    for group in GROUPS:
        options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        assert f"\n{group}: {options}\n" in asked.out

    composed = cli(train, "--cfg", "job", "optimizer.lr=3e-5", "seed=7")
    assert (composed.code, composed.err) == (0, "")
    config = OmegaConf.to_container(OmegaConf.create(composed.out), resolve=True)
    assert isinstance(config, dict)
    assert config == compose(["optimizer.lr=3e-5", "seed=7"])[0]
    assert (config["seed"], config["optimizer"]["lr"]) == (7, 3e-5)

    wrong = cli(train, "--cfg", "job", "seed=-1")
    assert (wrong.code, wrong.out, wrong.err) == (2, "", "error: seed=-1: must be >= 0 and <= 4294967295\n")


def test_one_run_and_several(lab: Lab, cli: Cli) -> None:
    one = cli(train, *lab.arguments("seed=2"))
    assert (one.code, one.err) == (0, "")
    path = lab.path("seed=2")
    end = json.loads(path.read_text().splitlines()[-1])
    test, start, dev = (end["metrics"]["test"], end["start"]["test"], end["metrics"]["dev"])
    said = (
        f"test accuracy {test['accuracy']:.3f} (start {start['accuracy']:.3f}), dev {dev['accuracy']:.3f} at step "
        f"{end['chosen_step']}, 24 forwards, {end['train_s']:.1f} s of training  ({path})\n"
    )
    assert one.out == (
        "zo_sgd on toy with tiny, full, fp32, seed 2, cpu\n"
        "  parameters  329,280 of 329,280 train\n"
        "  data        64 train / 40 dev / 40 test\n"
        "  step        2 forwards, batch 8\n"
        "  budget      12 steps, 3 evaluations\n"
        "  memory      0.001 GiB of weights, gradients and states; activations come on top\n"
        f"  record      {path}\n"
        f"completed: {said}"
    )

    several = cli(train, "-m", *lab.arguments("seed=2", "optimizer=zo_sgd,adamw"))
    assert (several.code, several.err) == (0, "")
    assert f"already complete: {said}" in several.out
    lines = several.out.splitlines()
    assert sum(line.startswith("completed: ") for line in lines) == 1
    assert "  step        1 forward + 1 backward (3 forwards), batch 8" in lines
    assert len(list(path.parent.glob("*.jsonl"))) == 2
    command = json.loads(path.read_text().splitlines()[0])["command"]
    assert command == "python -m runners.train " + " ".join(lab.arguments("seed=2"))


# ---- show -----------------------------------------------------------------------------------------------------------

PROMPTS = (
    "Some call the plot refreshing and the ending lousy, but the concert is annoying to me. It was",
    "Every scene of the drama looked uplifting and expertly filmed. It was",
)


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_show_without_a_model(cli: Cli) -> None:
    shown = cli(show, "task=toy", "split=validation", "rows=0:2")
    assert shown.code == 0
    assert shown.out == (
        f"row 0\n  prompt  '{PROMPTS[0]}'\n  * 0     ' terrible'\n    1     ' great'\n  null    'It was'\n"
        f"row 1\n  prompt  '{PROMPTS[1]}'\n    0     ' terrible'\n  * 1     ' great'\n  null    'It was'\n"
    )
    (line,) = cli(show, "task=toy", "split=validation", "rows=1", "--json").out.splitlines()
    assert json.loads(line) == {
        "row": 1, "prompt": PROMPTS[1], "options": [" terrible", " great"], "label": [1], "null_prompt": "It was"
    }  # fmt: skip
    assert list(json.loads(line)) == ["row", "prompt", "options", "label", "null_prompt"]


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_show_says_what_stands_around_the_mask_and_all_answers(cli: Cli, tmp_path: Path) -> None:
    rows = {
        "stanfordnlp/snli/plain_text": {"premise": "A man sits.", "hypothesis": "He rests.", "label": 1},
        "rajpurkar/squad/plain_text": {"title": "T", "context": "C", "question": "Q?", "answers": {"text": ["a", "b"]}},
    }
    for where, row in rows.items():
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "validation.jsonl").write_text(json.dumps(row))
    common = ("split=validation", "rows=0", f"data.root={tmp_path}")
    assert cli(show, "task=snli_mask", *common).out == (
        "row 0\n  prompt  'A man sits?'\n    0     ' Yes'\n  * 1     ' Maybe'\n    2     ' No'\n"
        "  suffix  ', he rests.'\n"
    )
    assert cli(show, "task=squad", *common).out == (
        "row 0\n  prompt  'Title: T\\nContext: C\\nQuestion: Q?\\nAnswer:'\n  * 0     ' a\\n'\n  answers 'a', 'b'\n"
    )


def test_show_with_a_model(cli: Cli) -> None:
    shown = cli(show, "task=toy", "model=tiny", "split=validation", "rows=1").out.splitlines()
    (line,) = cli(show, "--json", "task=toy", "model=tiny", "split=validation", "rows=1").out.splitlines()
    row = json.loads(line)
    assert list(row) == ["row", "prompt", "options", "label", "null_prompt", "prompt_ids", "option_ids"]
    assert [len(option) for option in row["option_ids"]] == [1, 1]
    (bad,), (good,) = row["option_ids"]
    assert shown[:2] == ["row 1", f"  prompt  '{PROMPTS[1]}'"]
    assert [int(token.split(":")[0]) for token in shown[2].split()] == row["prompt_ids"]
    assert shown[2].startswith("          0:<s> ")
    assert shown[2].endswith(":Ġwas")
    assert shown[3:] == [
        f"    0     ' terrible'   {bad}:Ġterrible", f"  * 1     ' great'   {good}:Ġgreat", "  null    'It was'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        ("task=toy", 2, ["split: missing; name a split of the source, e.g. split=validation"]),
        ("task=toy split=dev", 1, ["split=dev: the toy task has train and validation"]),
        ("task=toy split=train rows=5:3", 2, ["rows=5:3: must be A:B with 0 <= A < B, or one row A"]),
        ("task=toy split=train rows=-1:3", 2, ["rows=-1:3: must be A:B with 0 <= A < B, or one row A"]),
        ("task=toy split=train rows=3998:4001", 2, ["rows=3998:4001: split train has 4000 rows"]),
        ("--jsn task=tooy rows=a", 2,
         ["--jsn: no such option; there is --json",
          "split: missing; name a split of the source, e.g. split=validation",
          f"task=tooy: must be one of {TASKS} (did you mean toy?)",
          "rows=a: must be A:B with 0 <= A < B, or one row A"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_nothing_is_loaded")
def test_what_show_refuses(cli: Cli, arguments: str, code: int, lines: list[str]) -> None:
    ran = cli(show, *arguments.split())
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.splitlines() == [f"error: {line}" for line in lines]


# ---- replay ---------------------------------------------------------------------------------------------------------


def test_what_replay_refuses(cli: Cli) -> None:
    ran = cli(replay, "/no/such.jsonl", "mode=foo", "seed=3")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: mode=foo: must be one of exact, ideal\n"
        "error: seed=3: a replay takes mode, model.path, data.root, task.root, device, eval_batch_size; "
        "all else is the record's\n"
    )
    ran = cli(replay, "/no/such.jsonl")
    assert (ran.code, ran.err) == (1, "error: /no/such.jsonl: cannot be read (No such file or directory)\n")


# ---- the yamls ------------------------------------------------------------------------------------------------------

YAMLS = sorted(path.relative_to(CONF) for group in GROUPS for path in (CONF / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize("path", [*YAMLS, *(p.relative_to(CONF) for p in sorted((CONF / "suite").glob("*.yaml")))],
                         ids=str)  # fmt: skip
def test_a_yaml_says_what_it_is_for_and_how_to_use_it(path: Path) -> None:
    lines = (CONF / path).read_text().splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert len(head[0]) > 10
    assert head[0].startswith("# ")
    group, name = path.parts[0], path.stem
    commands = [line for line in head if line.startswith("#   python -m runners.")]
    assert any(f"{group}={name}" in line.split() for line in commands)
    if group != "suite":
        assert OmegaConf.load(CONF / path)["name"] == name


def test_every_yaml_composes_and_binds() -> None:
    """Each option of each group at least once, beside others of the other groups."""
    options = {group: [path.stem for path in YAMLS if path.parts[0] == group] for group in GROUPS}
    seen = set()
    for i in range(max(map(len, options.values()))):
        chosen = {group: names[i % len(names)] for group, names in options.items()}
        if chosen["optimizer"] != "zo_sgd" and chosen["precision"] in ("bf16_sr", "fp16", "fp16_master"):
            chosen["precision"] = "fp32"  # that these do not go together is tested above
        chosen = _fitting(chosen)
        seen |= set(chosen.items())
        _composes(chosen)
    for group, names in options.items():
        for name in names:
            if (group, name) not in seen:
                _composes(_fitting({group: name}))


def _fitting(chosen: dict[str, str]) -> dict[str, str]:
    """The same with another scheme or model, where a task or optimizer does not go with the one chosen."""
    found = dict(chosen)
    if found.get("optimizer") in ("none", "in_context", "hybrid", "lezo", "zo_sgd_block"):
        found["scheme"] = "full"  # they train nothing, or layers
    task, model, scheme = found.get("task", "toy"), found.get("model", "tiny"), found.get("scheme", "full")
    if task in ("squad", "drop", "gsm8k", "copa", "winogrande", "record") and scheme == "linear_probe":
        found["scheme"] = "full"  # it chooses among classes
    if task.endswith("_mask") and not model.startswith("roberta"):
        found["model"] = "roberta-large"
    if model.startswith("roberta") and not task.endswith("_mask"):
        found["task"] = "sst2_mask"
    return found


def _composes(chosen: dict[str, str]) -> None:
    config, problems = compose([f"{group}={name}" for group, name in chosen.items()])
    assert problems == []
    assert config is not None
    spec, problems = check(config)
    lab = chosen.get("model", "").endswith("-lab")
    assert problems == (["model.path: needs a folder, since model.hub names no repository"] if lab else [])
    assert spec is not None
    for group, name in chosen.items():
        assert config[group]["name"] == name
    if lab:
        return
    assert len(spec.run_id.split("-")[-1]) == 10


def test_the_run_id_is_of_what_makes_a_run(tmp_path: Path) -> None:
    def run_id(*overrides: str) -> str:
        config, problems = compose(overrides)
        assert config is not None
        spec, more = check(config)
        assert spec is not None
        assert problems + more == []
        return spec.run_id

    base = run_id()
    assert base.startswith("zo_sgd-toy-tiny-full-fp32-s1-")
    display = (
        f"out=elsewhere device=cpu progress=false save=x force=true log_every=7 eval_batch_size=3 data.root={tmp_path} "
        "wandb.mode=offline model.path=package:tiny"
    ).split()
    assert run_id(*display) == base
    others = [run_id(o) for o in ("seed=2", "optimizer.lr=2e-6", "budget.amount=10", "batch_size=8", "task.n_dev=9")]
    assert len({base, *others}) == 6


LAB_RECORDS = sorted((Path(__file__).parents[1] / "results/lab_precision").glob("*.jsonl"))


@pytest.mark.parametrize("record", LAB_RECORDS, ids=[path.stem for path in LAB_RECORDS])
def test_a_command_of_long_ago_still_names_the_same_run(record: Path, tmp_path: Path) -> None:
    """In every precision that there was then: a new property must not rename the runs that do not have it."""
    run = json.loads(record.read_text().splitlines()[0])
    places = "model.path=", "data.root="  # of the machine that it ran on, and not in the id
    here = ["model.path=package:tiny", f"data.root={tmp_path}"]
    overrides = [text for text in shlex.split(run["command"])[3:] if not text.startswith(places)] + here
    assert spec_of(overrides).run_id == run["run_id"] == record.stem


@pytest.mark.parametrize(
    "command",
    ["sweep suite=demo dry_run=true", "profile suite=smoke device=cpu dry_run=true", "show task=toy split=train"],
)
def test_a_reader_that_has_seen_enough_ends_a_command(command: str, tmp_path: Path) -> None:
    """As of ``... | head -n 1``, which has gone before the command prints."""
    read, write = os.pipe()
    os.close(read)
    module, *arguments = command.split()
    out = [] if module == "show" else [f"out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", f"runners.{module}", *arguments, *out], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == CODE
    assert "Error" not in done.stderr


def test_other_broken_pipes_are_errors() -> None:
    worker = "to a worker that has died"
    with (
        open(os.devnull, "w") as out,
        pytest.raises(BrokenPipeError, match=worker),
        contextlib.redirect_stdout(out),
        piped(),
    ):
        raise BrokenPipeError(worker)
