"""What a record counts, against what a run of its config costs: from its rows alone, then with the optimizer made.

Exact where a step's cost is known; bounds where forwards run part of the layers, or are left out where the loss is
known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from zobench.optim.base import ZOOptimizer
from zobench.optim.mezo_svrg import MeZOSVRG
from zobench.optim.nodes import wrapped
from zobench.run import Bench
from zobench.spec import RunSpec
from zobench.spending import Spending, cost_of

Row = dict[str, Any]
SVRG = f"{MeZOSVRG.__module__}.{MeZOSVRG.__qualname__}"
OFF = 1e-3  # of a number of forwards: parts of them are written to six digits
FIRST_ORDER = 3  # forwards a step, a backward being two
# Whole numbers of a config that none can do with more than: what is made or looped over is as large as they are.
MOST = {"optimizer": 2**20, "scheme": 4096, "batch_size": 2**16, "micro_batch_size": 2**16}
MOST_ELSEWHERE = 2**32  # a seed's


def numbers(config: Mapping[str, Any]) -> list[str]:
    """Whole numbers that are larger than any run's."""
    return [
        f"{where}={short(value)}: is more than any run has, at most {most:,}"
        for key, part in config.items()
        for where, value in _leaves(part, key)
        if isinstance(value, int) and abs(value) > (most := MOST.get(key, MOST_ELSEWHERE))
    ]


def of_record(rows: list[Row], spec: RunSpec) -> list[str]:
    """Examples against forwards, and for methods whose steps all cost the same, forwards against steps."""
    head, end, size = rows[0], rows[-1], spec.batch_size
    n_train = head["rows"]["train"]["n"]
    n_full = math.ceil(n_train / size)  # minibatches of the training set
    start = n_full if spec.start == "linear_probe" or spec.scheme.fits else 0  # forwards that see no example counted
    forwards, examples = end["n_forward"] - start, end["n_example"]
    least = most = forwards * size
    if _has(spec.config["optimizer"], "_target_", SVRG):  # a last minibatch of the training set may be smaller
        least = forwards * n_train / n_full
    if any(by != "all" for by in _values(spec.config["optimizer"], "blocks")):  # a part of a forward sees them all
        most = math.inf
    problems = []
    if not least - OFF * size <= examples <= most + OFF * size:
        said = f"{least:,.0f}" if least == most else f"at least {least:,.0f}" if most == math.inf else "others"
        problems.append(
            f"n_example {examples:,}: {end['n_forward']:,g} forwards with batch_size={size} see {said}"
            + (f" (between {least:,.0f} and {most:,.0f})" if said == "others" else "")
        )
    if end["n_token"] < examples:
        problems.append(f"n_token {end['n_token']:,}: fewer than the {examples:,} examples")
    a_step = head.get("forwards_per_step")
    if not isinstance(a_step, int | float) or isinstance(a_step, bool) or a_step < 0:
        return [*problems, f"forwards_per_step {short(a_step)}: must be a number"]
    if not spec.trains or wrapped(getattr(spec.make_optimizer, "func", None)):
        right = FIRST_ORDER if spec.trains else 0
        if a_step != right or abs(cost_of(end) - start - right * end["n_step"]) > OFF:
            problems.append(
                f"{end['n_step']:,} steps of {a_step:g} forwards each: optimizer={head['optimizer']} takes {right} a "
                f"step, and {cost_of(end) - start:,g} are counted"
            )
    return problems


def of_steps(rows: list[Row], bench: Bench) -> list[str]:
    """Forwards against what the optimizer's steps take, one by one. ``bench``: before its first step."""
    head, end, optimizer = rows[0], rows[-1], bench.optimizer
    if not isinstance(optimizer, ZOOptimizer):
        return []
    problems = []
    if head["forwards_per_step"] != optimizer.forwards_per_step:
        problems.append(
            f"forwards_per_step {head['forwards_per_step']:g}: the config's optimizer takes "
            f"{optimizer.forwards_per_step:g}"
        )
    n_full = math.ceil(len(bench.data["train"]) / bench.spec.batch_size)
    spending, least, most = Spending(bench.spec.budget, rows, bench.meter.cost), 0.0, 0.0
    for step in range(end["n_step"]):
        optimizer.n_step, costs = step, list[float]()
        for progress in set(spending.progress(step)):
            optimizer.progress = progress
            costs += optimizer.forwards_between(n_full)
        least, most = least + min(costs), most + max(costs)
    optimizer.n_step, optimizer.progress = 0, 0.0
    spent = cost_of(end) - bench.meter.cost
    if not least - OFF <= spent <= most + OFF:
        told = f"{least:,g}" if least == most else f"between {least:,g} and {most:,g}"
        problems.append(f"{spent:,g} forwards counted: {end['n_step']:,} steps of the config's optimizer take {told}")
    return problems


def _leaves(node: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [found for key, part in node.items() for found in _leaves(part, f"{where}.{key}")]
    if isinstance(node, list):
        return [found for i, part in enumerate(node) for found in _leaves(part, f"{where}.{i}")]
    return [(where, node)]


def _values(node: Mapping[str, Any], key: str) -> list[Any]:
    """The values of a key in an optimizer's config, and in those of the optimizers that it is made of."""
    own = [node[key]] if key in node else []
    return own + [value for part in node.values() if isinstance(part, dict) for value in _values(part, key)]


def _has(node: Mapping[str, Any], key: str, value: Any) -> bool:
    return value in _values(node, key)
