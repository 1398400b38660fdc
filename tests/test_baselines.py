"""Zero-shot and in-context baselines: no training, demonstrations before the prompts, calibrated scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Cli, Lab
from omegaconf import OmegaConf

from analysis.render import Cell
from runners import replay, show
from runners.compose import spec_of
from runners.composition import CONF
from runners.execute import plan
from runners.progress import Live
from runners.suite import Suite, points_of
from zobench import demonstrations
from zobench.calibration import nulls
from zobench.config import ConfigError, locate
from zobench.evaluate import evaluate
from zobench.optim.no_training import NoTraining
from zobench.prompts import prompts
from zobench.record import Record
from zobench.run import build
from zobench.scoring import collate
from zobench.tasks.base import DataError, Example, Row
from zobench.tasks.encoding import Encoded, encode
from zobench.tasks.toy import Toy
from zobench.train import Loop

UNTRAINED = [
    path.stem for path in sorted((CONF / "optimizer").glob("[!_]*.yaml"))
    if locate(OmegaConf.load(path)["_target_"]) is NoTraining
]  # fmt: skip
COMMON = [text for text in TINY if not text.startswith("optimizer.")]


class WithNull(Toy):
    """The toy task with a null prompt: what stands between sentence and option."""

    null = ""

    def example(self, index: int, row: Row) -> Example:
        return dataclasses.replace(super().example(index, row), null_prompt=self.null)


class Without(WithNull):
    """Loads as ``WithNull`` and has no null prompt."""

    null = None  # type: ignore[assignment]


def spec(lab: Lab, *overrides: str, task: str = "") -> Any:
    more = [f"task._target_=test_baselines.{task}"] if task else []
    made = spec_of([*COMMON, *more, *overrides])
    return dataclasses.replace(made, config={**made.config, "out": str(lab.folder / "runs")})


def run(lab: Lab, *overrides: str, task: str = "") -> tuple[Path, list[dict[str, Any]]]:
    from runners import execute

    path = execute.execute(spec(lab, *overrides, task=task), "a test", quiet=True).path
    return path, [json.loads(line) for line in path.read_text().splitlines()]


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", UNTRAINED)
def test_a_run_evaluates_each_split_once_and_spends_nothing(lab: Lab, optimizer: str) -> None:
    few = ["optimizer.demonstrations=3"] if optimizer == "in_context" else []
    path, rows = run(lab, f"optimizer={optimizer}", *few)
    assert [row["kind"] for row in rows] == ["run", "eval", "eval", "end"]
    assert [row["split"] for row in rows[1:3]] == ["dev", "test"]
    end = rows[-1]
    assert (end["status"], end["n_step"], end["n_forward"], end["n_backward"]) == ("completed", 0, 0, 0)
    assert end["metrics"] == {"dev": rows[1]["metrics"], "test": rows[2]["metrics"]}
    assert rows[0]["params"]["n_trainable"] == 0
    assert rows[0]["forwards_per_step"] == 0
    assert not list(path.parent.glob("*.gz"))
    assert run(lab, f"optimizer={optimizer}", *few)[1] == rows  # complete: not repeated
    bench = build(spec(lab, f"optimizer={optimizer}", *few))
    assert "training    none" in plan(bench, path, False)
    with pytest.raises(RuntimeError, match="no training"):
        bench.optimizer.step(bench.objective(0))


def test_zero_shot_is_where_training_starts(lab: Lab) -> None:
    assert run(lab, "optimizer=none")[1][-1]["metrics"] == lab.run("optimizer=zo_sgd").end["start"]


def test_a_stopped_run_goes_on(lab: Lab, fail_once: Any) -> None:
    whole = run(lab, "optimizer=none", "seed=2")[1]
    from zobench import train

    fail_once(train.Loop, "_choose", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(lab, "optimizer=none")
    rows = run(lab, "optimizer=none")[1]
    assert "resume" in [row["kind"] for row in rows]
    assert rows[-1]["status"] == "completed"
    assert rows[-1]["metrics"] == whole[-1]["metrics"]  # no seed has a part in it


def test_precisions_that_no_backward_could_take_are_fine(lab: Lab) -> None:
    assert run(lab, "optimizer=none", "precision=fp16")[1][-1]["status"] == "completed"


def test_what_makes_no_sense_without_training_is_refused() -> None:
    for overrides, said in (
        (["optimizer=none", "scheme=lora"], "scheme=lora: optimizer=none trains nothing; use scheme=full"),
        (["optimizer=none", "model.gradient_checkpointing=true"], "a run without training has no backward pass"),
        (["optimizer=in_context", "task.n_train=20"], "optimizer.demonstrations=32: task.n_train=20 has fewer"),
        (
            ["optimizer=in_context", "task.k_shot=8", "task.n_train=null", "task.n_dev=null"],
            r"optimizer.demonstrations=32: task.k_shot=8 has fewer examples \(16\)",
        ),
        (
            ["optimizer=none", "task=rte", "task.null_prompt=null", "data.root=.", "calibration=sfc"],
            "calibration=sfc: task=rte has no null prompt; use calibration=none",
        ),
        (["optimizer=in_context", "optimizer.demonstrations=-1"], "optimizer.demonstrations=-1: must be >= 0"),
        (["optimizer=none", "optimizer.demonstrations=3"], "optimizer.demonstrations: no such key"),
        (["optimizer=none", "calibration=icl_sfc"], "calibration=icl_sfc: keeps the demonstrations"),
        (["calibration=scf"], r"calibration=scf: must be one of icl_sfc, none, sfc \(did you mean sfc\?\)"),
        (["optimizer=hybrid", "optimizer@optimizer.zeroth=none"], "must be a zeroth-order optimizer"),
        (["optimizer=hybrid", "optimizer@optimizer.first=none"], "must be a first-order optimizer"),
    ):
        with pytest.raises(ConfigError, match=said):
            spec_of(overrides)


def test_it_cannot_be_replayed_and_says_why(lab: Lab, cli: Cli) -> None:
    said = cli(replay, str(run(lab, "optimizer=none")[0]))
    assert said.code == 1
    assert "only zeroth-order runs leave a trajectory to replay" in said.err


def test_a_suite_searches_no_grid_for_it() -> None:
    searched = Suite(["model=tiny", "task=toy"], [["optimizer=none,zo_sgd,in_context"]], [1], [1])
    assert [len(points) for points in points_of(searched, "results/none", [])] == [1, 4, 1]


# ---- demonstrations -------------------------------------------------------------------------------------------------


def _given(lab: Lab, *overrides: str, task: str = "WithNull") -> Any:
    """Tokenizer and examples of such a run."""
    made = spec(lab, "optimizer=in_context", "optimizer.demonstrations=3", *overrides, task=task)
    from zobench.tasks.splits import examples

    tokenizer, max_length = made.model.load_tokenizer()
    return tokenizer, max_length, examples(made.task)[0]


def test_demonstrations_are_solved_training_examples_before_the_question(lab: Lab) -> None:
    tokenizer, max_length, drawn = _given(lab)
    shown = demonstrations.draw(drawn["train"], 3, seed=5)
    assert shown == demonstrations.draw(drawn["train"], 3, seed=5)
    assert shown != demonstrations.draw(drawn["train"], 3, seed=6)
    assert demonstrations.draw(drawn["train"], 5, seed=5)[:3] == shown
    made, before, kept = demonstrations.prepend(list, tokenizer, drawn["test"], shown, max_length)
    assert kept == [3] * len(made)
    texts = [(e.prompt + e.options[e.label[0]]).strip() for e in shown]
    assert made[0].prompt == "\n\n".join([*texts, drawn["test"][0].prompt])
    assert before[0] + drawn["test"][0].prompt == made[0].prompt
    assert (made[0].options, made[0].label) == (drawn["test"][0].options, drawn["test"][0].label)
    with pytest.raises(DataError, match=r"optimizer\.demonstrations=99: the training set has 64 examples"):
        demonstrations.draw(drawn["train"], 99, seed=5)


def test_too_long_a_prompt_loses_whole_demonstrations_from_the_front(lab: Lab) -> None:
    tokenizer, _, drawn = _given(lab)
    shown = demonstrations.draw(drawn["train"], 3, seed=5)

    def length(example: Example) -> int:
        return max(len(tokenizer(example.prompt + option)["input_ids"]) for option in example.options)

    whole, _, _ = demonstrations.prepend(list, tokenizer, drawn["test"], shown, 10**6)
    alone = max(map(length, drawn["test"]))
    seen = set()
    for limit in range(alone, max(map(length, whole)) + 1, 7):
        made, before, kept = demonstrations.prepend(list, tokenizer, drawn["test"], shown, limit)
        for example, text, n, first in zip(made, before, kept, drawn["test"], strict=True):
            assert length(example) <= limit
            assert text == "".join(demonstrations.text_of(e) + "\n\n" for e in shown[3 - n :])
            assert example.prompt == text + first.prompt
            if n < 3:
                more = demonstrations.text_of(shown[2 - n]) + "\n\n" + example.prompt
                assert length(dataclasses.replace(example, prompt=more)) > limit
            seen.add(n)
        encoded = encode(tokenizer, made, limit)
        assert {e.prompt_ids[0] for e in encoded} == {tokenizer("a")["input_ids"][0]}  # the BOS is kept
    assert seen == {0, 1, 2, 3}


def test_a_record_says_which_demonstrations_and_how_many_fit(lab: Lab) -> None:
    rows = run(lab, "optimizer=in_context", "optimizer.demonstrations=20")[1][0]["rows"]["demonstrations"]
    assert rows["n"] == 20
    assert len(rows["ids_sha256"]) == 64
    assert 0 < rows["kept"]["test"] < 20
    other = run(lab, "optimizer=in_context", "optimizer.demonstrations=20", "seed=2")[1][0]["rows"]["demonstrations"]
    assert other["ids_sha256"] != rows["ids_sha256"]


# ---- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calibration", "null"), [("sfc", ""), ("sfc", "It was"), ("icl_sfc", ""), ("icl_sfc", "It")])
def test_calibrated_runs_score_what_the_prompt_adds(
    lab: Lab, calibration: str, null: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithNull, "null", null)
    few = ["optimizer=in_context", "optimizer.demonstrations=2", "task.n_test=12", "task.n_dev=4"]
    bench = build(spec(lab, *few, f"calibration={calibration}", task="WithNull"))
    assert len(bench.nulls["test"].encoded) == 1
    found = bench.evaluate("test")
    tokenizer, max_length, drawn = _given(lab, "task.n_test=12", "task.n_dev=4")
    shown = demonstrations.draw(drawn["train"], 2, seed=bench.spec.seed)
    before = "".join(demonstrations.text_of(e) + "\n\n" for e in shown)
    hits, losses = [], []
    for example in drawn["test"]:
        full = dataclasses.replace(example, prompt=before + example.prompt)
        bare = dataclasses.replace(example, prompt=(before if calibration == "icl_sfc" else "") + null)
        sums = []
        for each, is_bare in ((full, False), (bare, True)):
            encoded = encode(tokenizer, [each], max_length, bare=is_bare)[0]
            batch = collate([encoded], torch.device("cpu"), 0, normalised=True)
            with torch.no_grad():
                sums.append(bench.scorer(batch)[0] * torch.tensor([len(o) for o in encoded.option_ids]))
        score = torch.log_softmax(sums[0] - sums[1], 0)
        hits.append(int(score.argmax()) in example.label)
        losses.append(-float(score[example.label[0]]))
    assert found["accuracy"] == sum(hits) / len(hits)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    plain = evaluate(bench.scorer, bench.data["test"], 8, bench.spec.device, bench.pad_id)
    assert plain["loss"] != pytest.approx(found["loss"], rel=1e-3)


def test_training_with_calibration_changes_evaluations_alone(lab: Lab) -> None:
    lr = "optimizer.lr=1e-4"
    plain = run(lab, "optimizer=zo_sgd", lr, task="WithNull")
    sfc = run(lab, "optimizer=zo_sgd", lr, "calibration=sfc", task="WithNull")
    assert plain[0].stem != sfc[0].stem
    steps = [[row["loss"] for row in rows if row["kind"] == "step"] for _, rows in (plain, sfc)]
    assert steps[0] == steps[1]
    assert plain[1][-1]["start"] != sfc[1][-1]["start"]


def test_a_task_without_a_null_prompt_is_refused_before_the_model_is_loaded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec(lab, "optimizer=none", "calibration=sfc", task="Without")
    monkeypatch.setattr(type(made.model), "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DataError, match="calibration=sfc: task=toy has no null prompt; use calibration=none"):
        build(made)


def bare(tokenizer: Any, max_length: int) -> Callable[[Sequence[Example]], list[Encoded]]:
    return lambda examples: encode(tokenizer, examples, max_length, bare=True)


class NoBos:
    """The tokenizer without the token that it puts before a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: str | Sequence[str], **options: Any) -> Any:
        return self._tokenizer(texts, add_special_tokens=False, **options)


def test_an_empty_null_prompt_needs_a_token_before_it(lab: Lab) -> None:
    tokenizer, max_length, drawn = _given(lab)
    assert len(nulls(bare(tokenizer, max_length), drawn["test"], [""] * len(drawn["test"])).encoded) == 1
    with pytest.raises(DataError, match="its prompt is empty and this tokenizer puts no token before a text"):
        nulls(bare(NoBos(tokenizer), max_length), drawn["test"], [""] * len(drawn["test"]))


def test_null_prompts_are_encoded_once_for_each_list_of_options(lab: Lab) -> None:
    tokenizer, max_length, drawn = _given(lab)
    mixed = [
        dataclasses.replace(e, options=e.options[:: 1 if i % 2 else -1], null_prompt="It was" if i % 3 else "So")
        for i, e in enumerate(drawn["test"])
    ]
    found = nulls(bare(tokenizer, max_length), mixed, [""] * len(mixed))
    assert len(found.encoded) == 4
    for example, number in zip(mixed, found.of, strict=True):
        alone = encode(tokenizer, [dataclasses.replace(example, prompt=str(example.null_prompt))], max_length)[0]
        assert found.encoded[number].option_ids == alone.option_ids
        assert found.encoded[number].prompt_ids == alone.prompt_ids


def test_splits_are_encoded_without_demonstrations_where_there_are_none(lab: Lab) -> None:
    tokenizer, max_length, drawn = _given(lab)
    run_spec = spec(lab, "optimizer=none")
    made = prompts(
        run_spec.model, tokenizer, drawn, max_length, task=run_spec.task,
        calibration="none", n_demonstration=0, seed=1, reserve=0,
    )  # fmt: skip
    assert made.data == {split: encode(tokenizer, found, max_length) for split, found in drawn.items()}
    assert (made.nulls, made.rows) == ({}, {})


# ---- tables and progress --------------------------------------------------------------------------------------------


def test_baselines_have_rows_of_their_own_and_do_not_pass_for_where_training_starts(lab: Lab, tmp_path: Path) -> None:
    from analysis.load import load
    from analysis.select import choose
    from analysis.tables import accuracy
    from analysis.usage import memory, throughput

    few, lr = "optimizer.demonstrations=2", "optimizer.lr=1e-4"
    zero_shot = run(lab, "optimizer=none")[1][-1]["metrics"]["test"]["accuracy"]
    shown = run(lab, "optimizer=in_context", few)[1][-1]["metrics"]["test"]["accuracy"]
    for scheme in ("full", "lora"):
        run(lab, "optimizer=zo_sgd", lr, f"scheme={scheme}")
    records = load((tmp_path / "runs").glob("*.jsonl"))
    assert not records.problems
    choices = choose(records.runs)
    table = accuracy(records.runs, choices)
    (section,) = table.sections
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in section.rows}
    assert zero_shot != shown
    assert cells["none"][0] == cells["start (zero-shot)"][0] == f"{100 * zero_shot:.1f} (1)"
    assert cells["in_context"][0] == f"{100 * shown:.1f} (1)"
    assert cells["none"][1] == cells["in_context"][1] == Cell().text
    assert not section.commands  # no command could fill these
    for made in (memory(records.runs), throughput(records.runs)):
        assert any("in_context" in [cell.text for cell in row] for part in made.sections for row in part.rows)


def test_an_evaluation_shows_how_far_it_is(lab: Lab) -> None:
    live = Live(True, "accuracy", torch.device("cpu"))
    shown = []
    told = live.evaluating

    def spy(split: str, n_done: int, n: int) -> None:
        told(split, n_done, n)  # type: ignore[arg-type]
        bar = live._bar.tasks[live._evaluation]
        shown.append((bar.description, bar.completed, bar.total, bar.visible))

    live.evaluating = spy  # type: ignore[method-assign, assignment]
    made = spec(lab, "optimizer=none", "eval_batch_size=16")
    Loop(build(made), Record(tmp := lab.folder / "r.jsonl"), "a test", [live]).run()
    assert tmp.exists()
    for split in ("dev", "test"):
        of_split = [rest for description, *rest in shown if description == f"evaluating {split}"]
        assert of_split == [[16, 40, True], [32, 40, True], [40, 40, False]]


def test_a_scheme_that_fits_itself_needs_no_optimizer(lab: Lab) -> None:
    zero_shot, fitted = run(lab, "optimizer=none")[1], run(lab, "optimizer=none", "scheme=linear_probe")[1]
    assert fitted[-1]["metrics"]["dev"]["accuracy"] > zero_shot[-1]["metrics"]["dev"]["accuracy"] + 0.1
    assert fitted[-1]["n_forward"] == 8  # the training set once, 64 examples of 8 a minibatch
    for other in ("optimizer=in_context", "calibration=sfc"):
        with pytest.raises(ConfigError, match="linear_probe"):
            spec_of(["optimizer=none", "scheme=linear_probe", other])


def test_show_shows_the_demonstrations(cli: Cli) -> None:
    arguments = ("task=toy", "model=tiny", "split=validation", "rows=0:2", "optimizer.demonstrations=2", "--json")
    said = cli(show, "optimizer=in_context", *arguments)
    assert said.code == 0
    for line in said.out.splitlines():
        assert json.loads(line)["prompt"].count("\n\n") == 2
