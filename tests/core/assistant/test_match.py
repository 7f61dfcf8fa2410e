"""Stems, idf and coverage: the forms that must meet do, the numbers are BM25's, and the score keeps its promises."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.assistant.match import asked_words, coverage, focus, has_number, idf, stem, stems, wants_number


@pytest.mark.parametrize(
    "forms",
    [
        "repair repairs repaired repairing",
        "level levels levelled levelling",
        "price prices pricing",
        "warranty warranties",
        "class classes",
        "found founded founder founding",
        "story stories",
        "humid humidity",
        "Saite Saiten",
        "Zeit Zeiten",
        "Instrument Instrumente Instrumenten",
        "Bogen Bögen",
        "kosten kostet",
        "wechseln wechselt",
        "Wartung Wartungen",
        "Straße Strasse",
        "set-up setup",
    ],
)
def test_forms_of_a_word_have_one_stem(forms: str) -> None:
    assert len({stem(word) for word in forms.split()}) == 1


@pytest.mark.parametrize(
    "pair", ["bow bowl", "string strong", "glue glut", "violin viola", "plan plant", "Saite Seite"]
)
def test_different_words_stay_apart(pair: str) -> None:
    a, b = pair.split()
    assert stem(a) != stem(b)


@given(st.text(max_size=20))
def test_a_stem_is_lower_case_and_keeps_something(word: str) -> None:
    made = stem(word)
    assert made == made.casefold()
    assert made or not any(c.isalnum() for c in word)


def test_both_halves_of_a_hyphenated_word_are_found() -> None:
    assert stems("a steel-string guitar") == [stem("steelstring"), "steel", "string", "guitar"]


def test_idf_is_the_formula_of_bm25_and_falls_with_the_count() -> None:
    assert idf(3, 10) == pytest.approx(math.log((10 - 3 + 0.5) / (3 + 0.5) + 1))
    values = [idf(n, 100) for n in range(101)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


def test_words_that_only_ask_do_not_count_unless_nothing_else_is_there() -> None:
    assert asked_words("Please tell me: what does humidity mean?") == ["humid"]
    assert asked_words("Could you please explain?") == [stem("please"), stem("explain")]
    assert asked_words("What is it?") == []


def test_credit_by_place() -> None:
    words = {"fret": 1.0}
    assert coverage(words, "fret level", "") == 1.0
    assert coverage(words, "level", "fret") == pytest.approx(0.9)
    assert coverage({stem("cost"): 1.0}, stem("price"), "") == pytest.approx(0.8)
    assert coverage({stem("Saitenwechsel"): 1.0}, stem("Saiten"), "") == 0.0  # `sait` has four letters
    assert coverage({stem("Geigenbogen"): 1.0}, stem("Geigen") + " " + stem("Stege"), "") == 0.0
    assert coverage({"wechsel": 1.0}, "saitenwechsel", "") == pytest.approx(0.7)
    assert coverage({"saitenwechsel": 1.0}, "wechsel", "") == pytest.approx(0.7)
    assert coverage({}, "fret", "") == 0.0


WORDS = st.dictionaries(st.sampled_from(["fret", "neck", "spruce", "bow", "wechsel"]), st.floats(0.1, 9), min_size=1)
TEXT = st.lists(st.sampled_from(["fret", "neck", "saitenwechsel", "oil"]), max_size=4).map(" ".join)


@given(WORDS, TEXT, TEXT)
def test_coverage_is_a_share_and_more_text_never_lowers_it(words: dict[str, float], text: str, more: str) -> None:
    less, most = coverage(words, text, ""), coverage(words, f"{text} {more}", "")
    assert 0.0 <= less <= most <= 1.0 + 1e-12
    assert coverage(words, " ".join(words), "") == pytest.approx(1.0)


def test_a_rare_missing_word_costs_more_than_a_common_one() -> None:
    rare, common = idf(1, 1000), idf(500, 1000)
    words = {"harp": rare, "repair": common}
    assert coverage(words, "repair", "") < 0.2 < 0.8 < coverage(words, "harp", "")


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("How much is it?", True),
        ("When do you open?", True),
        ("Wie lange dauert es?", True),
        ("Who is he?", False),
        ("How do I oil it?", False),
    ],
)
def test_questions_for_a_number(question: str, wanted: bool) -> None:
    assert wants_number(question) is wanted


def test_number_words_count_as_numbers() -> None:
    assert has_number("twice a year") and has_number("am Montag") and has_number("CHF 5")
    assert not has_number("a neck is reset")


def test_focus_is_the_share_of_the_best_field_that_the_question_speaks_of() -> None:
    words = {"fret": 2.0, "level": 1.0}
    assert focus(words, ["fret level", "neck"]) == 1.0
    assert focus(words, ["fret neck spruce bow", ""]) == 0.25
    assert focus(words, ["", " "]) == 0.0


def test_fractions_and_single_digits_are_words() -> None:
    assert stems("a 3/4 violin, grade 2") == ["3x4", "violin", "grad", "2"]
    assert stems("3.50 EUR at 10:30") == ["3x50", "eur", "10x30"]
