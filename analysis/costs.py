"""What a cost buys: dev scores at equal forwards and equal seconds, test scores at equal memory, and time to a target.

Only dev is looked at on the way (test is evaluated at a run's start and end), so scores at less than the whole budget
are dev scores: of a run, the best that it had seen by then, which is what its own choice of a checkpoint would report.
"""

import math
from collections.abc import Callable, Iterable
from statistics import fmean, median, stdev

from analysis.load import Records
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import Choice, Row, rows_of
from analysis.variants import natural

PANEL = ("model", "setting", "scheme", "precision", "budget")
SHARES = (0.125, 0.25, 0.5, 1.0)  # of what the cheapest run of a panel spent: every method has got so far
TARGETS = (0.5, 0.9)  # shares of the best method's gain on dev
GIB = 2**30
WHOLE = ", of those with all planned seeds and trials"


class Courses:
    """The dev evaluations of the chosen trials' runs, in order, and what else is known of these runs."""

    def __init__(self, records: Records, choices: Iterable[Choice]) -> None:
        self.choices = [choice for choice in choices if choice.run_ids]
        wanted = {run_id for choice in self.choices for run_id in choice.run_ids}
        self.runs = {run["run_id"]: run for run in rows_of(records.runs[records.runs["run_id"].isin(wanted)])}
        dev = records.evals[(records.evals["split"] == "dev") & records.evals["run_id"].isin(wanted)]
        self.dev: dict[str, list[Row]] = {run_id: [] for run_id in wanted}
        for row in rows_of(dev.sort_values(["run_id", "step"], kind="stable")):
            if math.isfinite(row["score"]):
                self.dev[row["run_id"]].append(row)

    def panels(self, *more: str) -> list[tuple[tuple[str, ...], list[Choice]]]:
        """The choices that may be compared, by ``PANEL`` and more properties of their runs."""
        found: dict[tuple[str, ...], list[Choice]] = {}
        for choice in self.choices:
            named = tuple(str(getattr(choice, name)) for name in PANEL)
            found.setdefault((*named, *(self.shared(choice, name) for name in more)), []).append(choice)
        return sorted(found.items())

    def shared(self, choice: Choice, name: str) -> str:
        """A property of the choice's runs, all of its values where they differ."""
        return "/".join(sorted({str(self.runs[run_id][name]) for run_id in choice.run_ids}))

    def best_within(self, choice: Choice, axis: str, level: float) -> list[float]:
        """Of each run the best dev score by the time it had spent ``level``. The step that crosses a level of forwards
        still counts, as it does for a budget."""
        scores = []
        for run_id in choice.run_ids:
            slack = self.runs[run_id]["forwards_per_step"] if axis == "forwards" else 0.0
            slack = slack if math.isfinite(slack) else 0.0
            seen = [r["score"] for r in self.dev[run_id] if r[axis] <= level or r[axis] - slack < level]
            scores += [max(seen)] if seen else []
        return scores


def at_equal_forwards(courses: Courses, suite: str) -> Table:
    """Dev score by forwards spent; a section a panel, a row an optimizer."""
    return _at_equal(
        courses, "forwards", (), Table(
            f"Accuracy at equal forwards: {suite}",
            "Best dev score in percent that the chosen trial had seen by so many forward passes (a backward counts as "
            f"two): mean ± sample standard deviation over seeds; bold is best{WHOLE}.", (), (), (),
        ), lambda level: f"{level:,.0f} forwards",
    )  # fmt: skip


def at_equal_seconds(courses: Courses, suite: str) -> Table:
    """Dev score by seconds of training; a section a panel and kind of hardware, a row an optimizer."""
    return _at_equal(
        courses, "train_s", ("hardware",), Table(
            f"Accuracy at equal seconds: {suite}",
            "Best dev score in percent that the chosen trial had seen by so many seconds of training (evaluations not "
            f"counted): mean ± sample standard deviation over seeds; bold is best{WHOLE}. Seconds compare methods only "
            "where each run had the hardware to itself.", (), (), (),
        ), lambda level: f"{level:,.4g} s",
    )  # fmt: skip


def _at_equal(courses: Courses, axis: str, more: tuple[str, ...], empty: Table, shown: Callable[[float], str]) -> Table:
    spent = "forwards" if axis == "forwards" else "seconds"
    sections, data = [], []
    for key, choices in courses.panels(*more):
        totals = [seen[-1][axis] for c in choices for i in c.run_ids if (seen := courses.dev[i])]
        least = _rounded_up(min((t for t in totals if math.isfinite(t)), default=0.0))
        if least <= 0:
            continue
        levels = [share * least for share in SHARES]
        grid = [(c, [courses.best_within(c, axis, level) for level in levels]) for c in choices]
        best = [_best([scores[i] for c, scores in grid if not c.lacks]) for i in range(len(levels))]
        rows = [
            (
                Cell(c.method),
                *(_mean(found, "" if c.lacks else best[i]) for i, found in enumerate(scores)),
                Cell(str(len(c.run_ids))),
            )
            for c, scores in grid
        ]
        header = ("optimizer", *map(shown, levels), "seeds")
        sections.append(Section(" · ".join(key), header, tuple(rows)))
        data += [
            (*key, c.optimizer, c.variant, f"{level:.6g}", *_stats(found))
            for c, scores in grid
            for level, found in zip(levels, scores, strict=True)
        ]
    columns = (*PANEL, *more, "optimizer", "variant", spent, "dev", "dev_std", "n_seed")
    return Table(empty.title, empty.caption, tuple(sections), columns, tuple(data))


def at_equal_memory(courses: Courses, suite: str) -> Table:
    """Test score by peak memory; a section a (model, task, precision, budget, hardware), a row a method, the smallest
    first. What is best within a memory is chosen on dev."""
    groups: dict[tuple[str, ...], list[tuple[float, float, Choice]]] = {}
    for c in courses.choices:
        peaks = [courses.runs[run_id]["peak_train_bytes"] for run_id in c.run_ids]
        seen = courses.best_within(c, "forwards", math.inf)
        if c.n_seed and seen and all(map(math.isfinite, peaks)):
            more = (courses.shared(c, "hardware"), courses.shared(c, "memory_kind"))
            groups.setdefault((c.model, c.setting, c.precision, c.budget, *more), []).append(
                (max(peaks), fmean(seen), c)
            )
    sections, data = [], []
    for key, found in sorted(groups.items(), key=lambda item: item[0]):
        rows = []
        found.sort(key=lambda each: (each[0], natural(each[2].method), each[2].scheme))
        best_dev, best = -math.inf, None
        for peak, dev, c in found:
            if dev > best_dev and not c.lacks:
                best_dev, best = dev, c
            named = (MISSING, MISSING) if best is None else (f"{best.method} / {best.scheme}", f"{100 * best.test:.1f}")
            cells = (f"{peak / GIB:.3f}", f"{100 * dev:.1f}", f"{100 * c.test:.1f}", *named)
            rows.append((Cell(c.method), Cell(c.scheme), *(Cell(text, bold=best is c) for text in cells)))
            within = ("",) * 4 if best is None else (best.optimizer, best.variant, best.scheme, f"{best.test:.6f}")
            scores = (f"{dev:.6f}", f"{c.test:.6f}", *within)
            data.append((*key, c.optimizer, c.variant, c.scheme, str(int(peak)), *scores))
        header = ("optimizer", "scheme", "peak train, GiB", "dev", "test", "best within this memory", "its test")
        sections.append(Section(" · ".join(key), header, tuple(rows), n_left=2))
    return Table(
        f"Accuracy at equal memory: {suite}",
        "Methods by peak training memory (GiB, the largest of the chosen trial's runs), and for each of these memories "
        "the method within it that has the best dev score, with its test score, in percent. Bold: nothing smaller is "
        f"better on dev{WHOLE}.",
        tuple(sections),
        (
            *("model", "setting", "precision", "budget", "hardware", "memory_kind", "optimizer", "variant", "scheme"),
            *("peak_train_bytes", "dev", "test", "best_optimizer", "best_variant", "best_scheme", "best_test"),
        ),
        tuple(data),
    )


def time_to_target(courses: Courses, suite: str) -> Table:
    """Forwards and seconds until the dev score reached a target; a section a panel and kind of hardware."""
    sections, data = [], []
    for key, choices in courses.panels("hardware"):
        starts = [
            seen[0]["score"] for c in choices for i in c.run_ids if (seen := courses.dev[i]) and not seen[0]["step"]
        ]
        whole = [c for c in choices if not c.lacks] or choices
        ends = [best for c in whole if (best := courses.best_within(c, "forwards", math.inf))]
        if not starts or not ends:
            continue
        start, top = fmean(starts), max(map(fmean, ends))
        if top <= start:
            continue
        targets = [start + share * (top - start) for share in TARGETS]
        reached = [(c, [_first(courses, c, target) for target in targets]) for c in choices]
        header = [part for t in targets for part in (f"forwards to {100 * t:.1f}", f"seconds to {100 * t:.1f}")]
        fewest = [
            min((m for c, hit in reached if not c.lacks and (m := _median(hit[i], 0))), default="")
            for i in range(len(targets))
        ]
        rows = []
        for c, hits in reached:
            cells = []
            for i, found in enumerate(hits):
                n = f"({len([h for h in found if h])} of {len(found)})"
                forwards, seconds = _median(found, 0), _median(found, 1)
                bold = forwards == fewest[i] != "" and not c.lacks
                cells.append(Cell(f"{forwards:,.0f} {n}" if forwards != "" else f"{MISSING} {n}", bold=bold))
                cells.append(Cell(f"{seconds:.3g}" if seconds != "" else MISSING))
                values = (f"{m:.6g}" if m != "" else "" for m in (forwards, seconds))
                data.append((*key, c.optimizer, c.variant, f"{TARGETS[i]:g}", f"{targets[i]:.6f}", *values, n[1:-1]))
            rows.append((Cell(c.method), *cells))
        sections.append(Section(" · ".join(key), ("optimizer", *header), tuple(rows)))
    return Table(
        f"Time to target: {suite}",
        "Forward passes and seconds of training until a run's dev score first reached the target: median over seeds "
        "(seeds that reached it), nothing where a seed did not. Targets: half and nine tenths of the way from the "
        f"start to the best method's mean dev score, in percent. Bold: fewest forwards{WHOLE}.",
        tuple(sections),
        (*PANEL, "hardware", "optimizer", "variant", "share_of_gain", "target_dev", "forwards", "seconds", "reached"),
        tuple(data),
    )


Hit = tuple[float, float] | None  # forwards and seconds, where a run reached the target


def _first(courses: Courses, choice: Choice, target: float) -> list[Hit]:
    return [
        next(((r["forwards"], r["train_s"]) for r in courses.dev[run_id] if r["score"] >= target - 1e-12), None)
        for run_id in choice.run_ids
    ]


def _median(found: list[Hit], axis: int) -> float | str:
    """'' where a run did not reach it, or does not say at what cost."""
    values = [hit[axis] for hit in found if hit]
    whole = len(values) == len(found) > 0 and all(map(math.isfinite, values))
    return float(median(values)) if whole else ""


def _best(columns: list[list[float]]) -> str:
    """The highest mean as it is printed; '' where all are alike, as at the start, and none is the best."""
    means = {round(100 * fmean(scores), 1) for scores in columns if scores}
    return f"{max(means):.1f}" if len(means) > 1 else ""


def _mean(scores: list[float], best: str) -> Cell:
    if not scores:
        return Cell()
    mean = f"{round(100 * fmean(scores), 1):.1f}"
    spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return Cell(mean + spread, bold=mean == best)


def _stats(scores: list[float]) -> tuple[str, str, str]:
    mean = f"{fmean(scores):.6f}" if scores else ""
    return mean, f"{stdev(scores):.6f}" if len(scores) > 1 else "", str(len(scores))


def _rounded_up(value: float) -> float:
    """To three digits, so that what is shown is what was compared."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return round(math.ceil(value / unit - 1e-9) * unit, 9)
