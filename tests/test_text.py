"""Numbers and names as people read them."""

from lmplay.text import count, name_key


def test_names_are_the_same_in_any_case_and_with_any_dash():
    assert name_key("My-Idea_2") == name_key("my_idea-2") != name_key("myidea2")


def test_numbers_with_units():
    assert [count(n) for n in (None, 7, 999, 1234, 120560209, 1.5e9, 2e12)] == [
        "-", "7", "999", "1.234k", "120.6M", "1.5B", "2T",
    ]  # fmt: skip
    assert [count(n) for n in (999_949, 999_960, 999_999_999, -999_999)] == ["999.9k", "1M", "1B", "-1M"]
