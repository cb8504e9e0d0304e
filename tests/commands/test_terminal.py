"""What the file system refuses is told in one sentence; a reader who has enough is not told at all."""

import errno

import pytest
import typer

from coe_server.commands.terminal import mistakes_as_sentences
from coe_server.errors import CoeError


def test_what_the_file_system_refuses_is_one_sentence_with_path_and_reason(capsys):
    with pytest.raises(typer.Exit) as ended, mistakes_as_sentences():
        raise PermissionError(errno.EACCES, "Permission denied", "/some/place")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "coe: /some/place: Permission denied\n"


def test_an_error_without_a_path_is_told_too(capsys):
    with pytest.raises(typer.Exit), mistakes_as_sentences():
        raise OSError("no device")
    assert capsys.readouterr().err == "coe: no device\n"


def test_a_closed_pipe_prints_nothing(capsys):
    with pytest.raises(BrokenPipeError), mistakes_as_sentences():  # the commands' framework ends quietly at it
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert capsys.readouterr().err == ""


def test_what_a_server_said_moves_no_cursor(capsys):
    with pytest.raises(typer.Exit), mistakes_as_sentences():
        raise CoeError("answers 500: \x1b[2J\x07\r\nnext")
    assert capsys.readouterr().err == "coe: answers 500: \\x1b[2J\\x07\\r\nnext\n"
