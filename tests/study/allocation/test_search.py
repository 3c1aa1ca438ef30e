"""The search alone: budgets are kept, and on a convex problem nothing better exists."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from pmsm.study.allocation.search import choose, total

LEVELS = (3, 5, 9)


@st.composite
def problems(draw) -> tuple[dict, dict, float]:
    """Losses that fall and costs that rise with the levels, and a budget between the extremes."""
    loss, cost = {}, {}
    for site in ["a", "b", "c"]:
        weight, price = draw(st.integers(1, 50)), draw(st.integers(1, 50))
        loss[site] = {level: weight / level**2 for level in LEVELS}
        cost[site] = {level: float(price * level) for level in LEVELS}
    low, high = (sum(extreme(costs.values()) for costs in cost.values()) for extreme in (min, max))
    return loss, cost, low + draw(st.floats(0, 1)) * (high - low)


@settings(max_examples=60)
@given(problem=problems())
def test_the_budget_is_kept_and_no_single_upgrade_fits_any_more(problem):
    loss, cost, budget = problem
    choice = choose(loss, cost, budget)
    spent = total(cost, choice)
    assert spent <= budget
    for site, level in choice.items():
        for other in LEVELS:
            better = loss[site][other] < loss[site][level]
            assert not (better and spent - cost[site][level] + cost[site][other] <= budget)


@settings(max_examples=60)
@given(problem=problems())
def test_no_choice_of_at_most_the_same_cost_is_better_by_more_than_one_site(problem):
    """The gap of the Lagrangian is at most what one site can gain (Everett 1963)."""
    loss, cost, budget = problem
    choice = choose(loss, cost, budget)
    every = (dict(zip(loss, levels, strict=True)) for levels in product(LEVELS, repeat=3))
    best = min(total(loss, other) for other in every if total(cost, other) <= budget)
    gap = max(max(each.values()) - min(each.values()) for each in loss.values())
    assert total(loss, choice) - best <= gap + 1e-9
