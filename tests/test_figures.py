"""What figures are drawn from."""

from __future__ import annotations

from pathlib import Path

from made_up import end_line, read, run_line, whole_run, write

from analysis import dots, plots
from analysis.select import choose


def test_plot_data_is_the_mean_and_range_of_the_chosen_point(tmp_path: Path) -> None:
    for seed, dev, test in ((1, 0.7, 0.6), (2, 0.9, 0.8)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=dev, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.1)
    records = read(tmp_path)
    shown = plots.curves(records, choose(records.runs))
    columns = ["split", "step", "forwards", "seconds", "mean", "min", "max", "n_seed"]
    assert [tuple(row) for row in shown[columns].round(6).to_numpy()] == [
        ("dev", 0, 0, 0, 0.5, 0.5, 0.5, 2),
        ("dev", 100, 200, 10, 0.6, 0.6, 0.6, 2),
        ("dev", 200, 400, 20, 0.8, 0.7, 0.9, 2),
        ("test", 200, 400, 20, 0.7, 0.6, 0.8, 2),
    ]


def test_an_optimizer_looks_the_same_in_any_company() -> None:
    names = ["zo_sgd", "adamw", "mine", "yours"]
    together = plots._looks(names)
    assert all(plots._looks([name])[name] == together[name] for name in names)
    assert len({str(look) for look in plots._looks([*plots.FIXED, *(f"m{i}" for i in range(12))]).values()}) == 20
    assert len(plots._looks(f"m{i}" for i in range(40))) == 40


def test_names_that_look_like_markup_are_drawn(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="_a$\\frac$", task="<b>&$", run_id="r")
    records = read(tmp_path)
    figure = plots.draw(plots.curves(records, choose(records.runs)), "forwards", "demo")
    plots.save(figure, tmp_path / "figure")
    assert "_a$\\frac$" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_dots_are_the_scores_of_the_chosen_point_and_say_what_a_method_learns_by(tmp_path: Path) -> None:
    for seed, dev, test in ((1, 0.7, 0.6), (2, 0.9, 0.8)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=dev, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.1)
    for name, counts in {
        "first": {"n_backward": 402},
        "half": {"n_backward": 201},
        "shot": {"n_step": 0, "n_forward": 0},
    }.items():
        write(tmp_path, run_line(optimizer=name, run_id=name), end_line(dev=0.5, test=0.4, **counts))
    whole_run(tmp_path, optimizer="lost", status="diverged")
    records = read(tmp_path)
    shown = dots.dots(records, choose(records.runs))
    columns = ["method", "learns_by", "start", "dev", "mean", "min", "max", "n_seed"]
    assert shown[columns].round(6).to_numpy().tolist() == [
        ["first", "backwards", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["half", "both", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["shot", "nothing", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["zo_sgd", "forwards", 0.5, 0.8, 0.7, 0.6, 0.8, 2],
    ]
    (ax,) = dots.draw(shown, "demo").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shot", "half", "first", "zo_sgd"]  # best on top
