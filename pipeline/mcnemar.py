"""McNemar's test: whether two settings that answered the same questions differ in how many they get right."""

from __future__ import annotations

import math


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p value; 1 where no question differs.

    Args:
        gained: questions that the setting gets right and dense does not.
        lost: questions that dense gets right and the setting does not.

    Under the null hypothesis each question that differs is as likely gained as lost: twice the tail of the binomial
    distribution with p = 1/2, at most 1 (McNemar 1947; exact form as in Edwards 1948). Questions count as independent.
    """
    differing, fewer = gained + lost, min(gained, lost)
    if differing == 0:
        return 1.0
    halves = differing * math.log(2)
    tail = math.fsum(math.exp(_log_choose(differing, k) - halves) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
