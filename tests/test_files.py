"""Reading text for a user, and flags that are too small: one line that says what is wrong."""

import io
from types import SimpleNamespace

import pytest

from lmplay.errors import UserError, check_at_least
from lmplay.files import read_text
from lmplay.text import without_half_surrogates


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgröße\r\n".encode())
    assert read_text(path) == "\ufeffgröße\r\n"
    assert read_text(str(path), encoding="utf-8-sig") == "größe\r\n"
    assert read_text(path, encoding="utf-8-sig", limit=3) == "grö"


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("größe".encode())))
    assert read_text("-") == "größe"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"abc\xff")))
    with pytest.raises(UserError, match=r"^the prompt in standard input is not UTF-8 text \(byte 3\)$"):
        read_text("-", "the prompt in")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "picture").write_bytes(b"\x89PNG")
    for name, said in (
        ("picture", "is not UTF-8 text (byte 0)"),
        ("nowhere", "can't be read: No such file or directory"),
        (".", "can't be read: Is a directory"),
    ):
        with pytest.raises(UserError) as error:
            read_text(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} {said}"


def test_a_flag_that_is_too_small():
    check_at_least(1, seeds=1, max_len=None)
    with pytest.raises(UserError, match="^--max-len must be at least 1, not 0$"):
        check_at_least(1, seeds=1, max_len=0)


def test_half_surrogates_are_replaced():
    assert without_half_surrogates("größe 😀") == "größe 😀"
    assert without_half_surrogates("a\ud83db") == "a\ufffdb"
    assert without_half_surrogates("\ud83d\ude00") == "😀"
