"""Several trainings are shown at once, each by a line of its own."""

from lmplay.compare.board import Board, fitted


def test_lines_where_there_is_no_terminal(capsys):
    board = Board()
    board.show("a", "")
    board.show("a", "1/4")
    board.show("b", "1/9")
    board.show("a", "2/4")  # too soon after the first
    board.say("c begins")
    board.drop("a")
    board.drop("b")  # is said already
    board.drop("d")
    assert capsys.readouterr().err.splitlines() == ["a: 1/4", "b: 1/9", "c begins", "a: 2/4"]


def test_a_narrow_terminal_loses_the_last_figures_before_the_time_left():
    text = "on a | plain 12/100: loss 3.142 | 12.5k tok/s | 1.2M tokens | 10:00 left"
    assert fitted("b seed 0: ", text, 99) == f"b seed 0: {text}"
    assert fitted("b seed 0: ", text, 72) == "b seed 0: on a | plain 12/100: loss 3.142 | 12.5k tok/s | 10:00 left"
    assert fitted("b seed 0: ", text, 60) == "b seed 0: on a | plain 12/100: loss 3.142 | 10:00 left"
    assert fitted("b seed 0: ", text, 20) == "b seed 0: on a | pla"
