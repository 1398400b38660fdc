"""A paired test over seeds: whether two methods' scores differ by more than their seeds make them.

Student's paired t-test, two-sided. With three seeds it is weak (docs/leaderboard.md says how weak), but the exact
sign-flip test, which does not assume normal differences, cannot speak at all: its smallest p value at n seeds is
2^(1-n), 0.25 at three, and first falls below 0.05 at six.
"""

import math
from collections.abc import Mapping
from statistics import fmean, stdev

LEVEL = 0.05


def p_value(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """The p value of the scores by seed, on the seeds that both have; NaN below two.

    Differences that are all alike say nothing of their own error: 1, however large they are.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    n = len(differences)
    if n < 2:
        return math.nan
    spread = stdev(differences)
    if spread <= 1e-12:  # scores are fractions of 1: less is rounding
        return 1.0
    return two_sided(fmean(differences) / (spread / math.sqrt(n)), n - 1)


def two_sided(t: float, n_free: int) -> float:
    """P(|T| >= |t|) of Student's t with ``n_free`` degrees of freedom, in closed form (Abramowitz and Stegun, 26.7.3
    and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(n_free))
    cosine, odd = math.cos(angle), n_free % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 if odd else 0, n_free - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return max(0.0, 1.0 - inside)
