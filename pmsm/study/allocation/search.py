"""Which candidate each site takes, so that the sum of the losses is small and that of the costs is kept."""

import math
from collections.abc import Mapping

Choice = dict[str, int]
Curves = Mapping[str, Mapping[int, float]]
"""Site -> candidate (its number of levels) -> loss, or cost."""


def total(curves: Curves, choice: Choice) -> float:
    """The sum over the sites."""
    return sum(curves[site][level] for site, level in choice.items())


def choose(loss: Curves, cost: Curves, budget: float) -> Choice:
    """The candidates with the smallest sum of losses among those on the lower convex hull, within the budget;
    what is left of it goes to the upgrades that gain the most for their cost.

    Each site minimizes loss + multiplier * cost by itself; the multiplier is found by bisection (Everett,
    Operations Research 1963; for the allocation of bits Shoham and Gersho, IEEE Trans. ASSP 1988).

    Args:
        budget: at least the cost of the cheapest candidates.

    >>> choose(
    ...     {"a": {1: 4.0, 2: 1.0}, "b": {1: 2.0, 2: 1.0}},
    ...     {"a": {1: 1, 2: 2}, "b": {1: 1, 2: 2}},
    ...     3,
    ... )
    {'a': 2, 'b': 1}
    """

    def at(multiplier: float) -> Choice:
        """The choice of every site by itself, at this price of a unit of cost."""
        return {
            site: min(costs, key=lambda level: (loss[site][level] + multiplier * costs[level], costs[level]))
            for site, costs in cost.items()
        }

    best = {site: min(costs, key=lambda level: costs[level]) for site, costs in cost.items()}
    low, high = -60.0, 60.0  # powers of ten between which every multiplier that matters lies
    for _ in range(100):
        middle = (low + high) / 2
        choice = at(10.0**middle)
        if total(cost, choice) <= budget:
            high, best = middle, choice
        else:
            low = middle
    return _fill(best, loss, cost, budget)


def _fill(choice: Choice, loss: Curves, cost: Curves, budget: float) -> Choice:
    """Upgrades while one fits, the one that gains the most for its cost first."""
    choice = dict(choice)
    while True:
        left = budget - total(cost, choice)
        gains: list[tuple[float, str, int]] = []
        for site, level in choice.items():
            for other in cost[site]:
                less, more = loss[site][level] - loss[site][other], cost[site][other] - cost[site][level]
                if less > 0 and more <= left:
                    gains.append((less / more if more > 0 else math.inf, site, other))
        if not gains:
            return choice
        _, site, other = max(gains)
        choice[site] = other
