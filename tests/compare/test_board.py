"""Several trainings are shown at once, each by a line of its own."""

from lmplay.compare.board import Board


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
