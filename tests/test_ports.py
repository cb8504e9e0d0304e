"""A port that was given out is kept for the server that it is meant for."""

import errno
import socket

import pytest

from tests.ports import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_was_given_out_is_for_a_server_alone(host):
    try:
        port = free_port(host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other, pytest.raises(OSError, match="in use") as refused:
        other.bind((host, port))
    assert refused.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, port)):
        pass
    with socket.create_server((host, port), family=family), socket.create_connection((host, port)):
        pass
