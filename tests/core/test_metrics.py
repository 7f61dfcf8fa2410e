"""Metrics against SQuAD's published examples' rules, scipy-free closed forms and brute force."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.evaluation.metrics import bootstrap, exact_match, has_facts, normalise, token_f1, wilson


def test_normalise_follows_squad_and_keeps_numbers_apart():
    assert normalise("The  Broncos!") == normalise("broncos")
    assert normalise("Die Werkstatt") == "werkstatt"
    assert normalise("4.5 mm") != normalise("45 mm")
    assert normalise("1,200") == normalise("1200") == normalise("1'200")
    assert normalise("45%") == normalise("45 %")


def test_f1_of_a_worked_example():
    """answer {x, y, z}, expected {y, z, w, v}: precision 2/3, recall 2/4, F1 = 2·(2/3)(1/2)/(2/3+1/2) = 4/7."""
    assert token_f1("x y z", "y z w v") == pytest.approx(4 / 7)
    assert token_f1("", "") == 1.0
    assert token_f1("", "y") == 0.0


def test_facts_are_whole_words():
    assert has_facts("It costs CHF 85, always.", ["CHF 85"]) == 1.0
    assert has_facts("It costs CHF 850.", ["CHF 85"]) == 0.0
    assert has_facts("Monday or Tuesday", ["Monday", "Friday"]) == 0.0
    with pytest.raises(ValueError, match="without facts"):
        has_facts("anything", [])


def test_wilson_equals_its_quadratic():
    """The interval's ends are the p at which |p̂ − p| = z·sqrt(p(1 − p)/n) (Wilson 1927, eq. 3)."""
    for k, n in ((0, 10), (3, 10), (10, 10), (57, 80)):
        e = wilson([1.0] * k + [0.0] * (n - k))
        assert (e.value, e.n) == (k / n, n)
        for p in (e.low, e.high):
            if 1e-9 < p < 1 - 1e-9:
                assert abs(k / n - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / n), abs=1e-9)
    assert wilson([]).n == 0


def test_bootstrap_is_reproducible_and_brackets_the_mean():
    scores = [0.0, 0.2, 0.9, 1.0, 0.4] * 8
    first, again = bootstrap(scores, seed=1), bootstrap(scores, seed=1)
    assert first == again
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(sum(scores) / len(scores))
    # against the normal approximation of the mean's interval
    sd = math.sqrt(sum((s - first.value) ** 2 for s in scores) / len(scores) / len(scores))
    assert first.high - first.low == pytest.approx(2 * 1.96 * sd, rel=0.1)


@settings(max_examples=100)
@given(st.text(max_size=40), st.text(max_size=40))
def test_properties(a, b):
    assert normalise(normalise(a)) == normalise(a)
    assert exact_match(a, a) == 1.0
    assert 0.0 <= token_f1(a, b) == token_f1(b, a) <= 1.0
