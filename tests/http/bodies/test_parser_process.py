"""Large bodies are read in a process of their own, which ends with the server and is replaced when it has ended."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

from coe_server.errors import RequestError
from coe_server.http.apis import APIS
from coe_server.http.bodies import parser_process as aside
from coe_server.http.bodies.body import parse_request
from coe_server.http.bodies.parser_process import ParserProcess
from tests.patience import PATIENCE_SECONDS

CHAT = APIS[0]
RAW = b'{"messages": [{"role": "user", "content": "h\xc3\xa9llo"}], "model": "a", "seed": 7}'


@pytest.fixture(scope="module")
def reader():
    made = ParserProcess()
    made._timeout_seconds = PATIENCE_SECONDS
    yield made
    made.close()


def test_a_question_comes_back_as_if_it_had_been_read_here(reader):
    here, found = parse_request(RAW, CHAT), reader.read([RAW[:9], RAW[9:]], CHAT)
    assert (found.api, found.conversation, found.body.members) == (CHAT, here.conversation, here.body.members)
    assert b"".join(found.body.for_engine("b")) == b"".join(here.body.for_engine("b"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_a_question_in_another_encoding_comes_back_with_its_bytes_in_utf_8(reader, encoding):
    found = reader.read([RAW.decode().encode(encoding)], CHAT)
    assert b"".join(found.body.for_engine("b")) == b"".join(parse_request(RAW, CHAT).body.for_engine("b"))


def test_a_refusal_comes_back_with_its_field(reader):
    with pytest.raises(RequestError, match="at least one message") as caught:
        reader.read([b'{"messages": []}'], CHAT)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("key", ["coe", "stream"])
def test_an_option_nested_deeper_than_pickle_goes_is_refused_and_does_not_end_the_process(reader, key):
    reader.read([RAW], CHAT)
    process = reader._process
    nested = b"[" * 900 + b"]" * 900
    with pytest.raises(RequestError, match="nested too deeply"):
        reader.read([RAW[:-1], b', "%b": %b}' % (key.encode(), nested)], CHAT)
    assert reader.read([RAW], CHAT).body.fields["model"] == "a"
    assert reader._process is process


def test_a_body_is_read_here_when_the_process_died_and_the_next_one_in_a_new_process(reader, caplog):
    reader.read([RAW], CHAT)
    old = reader._process
    os.kill(old.pid, signal.SIGKILL)
    old.wait()
    assert reader.read([RAW], CHAT).body.fields["seed"] == 7  # what is read here has every field
    assert "has ended" in caplog.text
    assert "seed" not in reader.read([RAW], CHAT).body.fields
    assert reader._process.pid != old.pid


def test_a_process_that_hangs_is_ended_and_its_body_read_here(caplog):
    reader = ParserProcess()
    reader.read([RAW], CHAT)
    os.kill(reader._process.pid, signal.SIGSTOP)
    reader._timeout_seconds = 0.01
    assert reader.read([RAW], CHAT).body.fields["seed"] == 7
    assert "has ended" in caplog.text
    reader.close()


def test_the_process_ends_with_its_input_and_not_with_a_signal_for_the_whole_group():
    process = subprocess.Popen((sys.executable, "-m", aside.__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pickle.dump((RAW, CHAT), process.stdin)
    process.stdin.flush()
    pickle.load(process.stdout)
    process.send_signal(signal.SIGTERM)
    pickle.dump((RAW, CHAT), process.stdin)
    process.stdin.flush()
    assert pickle.load(process.stdout).body.fields["model"] == "a"
    process.communicate()
    assert process.returncode == 0
