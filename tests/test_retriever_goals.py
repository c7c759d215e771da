import pytest

from two_tower.models.errors import ConfigError
from two_tower.retriever.tuning.goals import Condition, parse_goal


def test_conditions_and_an_aim_in_any_order() -> None:
    goal = parse_goal("min p95, recall@10 >= 0.99 of exact, Recall@100>=.9, memory<=500 MB")
    assert goal.conditions == (
        Condition("recall@10 of exact", True, 0.99),
        Condition("recall@100", True, 0.9),
        Condition("memory", False, 500.0),
    )
    assert (goal.aim, goal.is_max) == ("p95", False)
    assert parse_goal("max recall@1 of exact").aim == "recall@1 of exact"
    assert parse_goal("p50<=20ms,max recall@10").conditions == (Condition("p50", False, 20.0),)


def test_settings_that_meet_it_come_first_then_those_that_miss_least() -> None:
    goal = parse_goal("recall@10>=0.8, p95<=10, min memory")
    fine = {"recall@10": 0.8, "p95": 10.0, "memory": 7.0}
    better = {"recall@10": 0.9, "p95": 9.0, "memory": 5.0}
    slow = {"recall@10": 0.9, "p95": 12.0, "memory": 1.0}
    poor = {"recall@10": 0.4, "p95": 1.0, "memory": 1.0}
    ordered = sorted([poor, slow, fine, better], key=lambda each: goal.order(each.__getitem__))
    assert ordered == [better, fine, slow, poor]
    assert goal.shortfall(slow.__getitem__) == pytest.approx((12 - 10) / 10)
    assert goal.shortfall(poor.__getitem__) == pytest.approx((0.8 - 0.4) / 0.8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot read ''"),
        ("recall@10>=0.9", "found 0 of min and max, expected one"),
        ("min p50, max recall@1", "found 2 of min and max, expected one"),
        ("recall@5>=0.9, min p95", "unknown measure 'recall@5', expected one of recall@1"),
        ("min p95 of exact", "unknown measure 'p95', expected one of recall@1, recall@10"),
        ("recall@10>=0.9.9, min p95", "'0.9.9' is no number"),
        ("recall@10>=2 of exact, min p95", "a recall of 2 is none, expected above 0, at most 1"),
        ("min recall@10", "min recall@10 is the worst there is"),
        ("max p95", "max p95 is the worst there is"),
        ("recall@10==1, min p95", "cannot read 'recall@10==1'"),
    ],
)
def test_what_is_no_goal_is_refused_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_goal(text)
    said = str(refused.value)
    assert reason in said
    assert "expected e.g. 'recall@10>=0.99 of exact, min p95'" in said
    assert "\n" not in said
