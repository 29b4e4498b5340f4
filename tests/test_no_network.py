"""Tests, and what they start, must not connect to other machines."""
import socket
import subprocess
import sys
from urllib.request import urlopen

import no_network
import pytest

CONNECT = "from urllib.request import urlopen; urlopen('http://example.org')"


def test_connections_are_refused_and_listed():
    with pytest.raises(OSError, match='tests must not connect to example.org'):
        urlopen('http://example.org')
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(('192.0.2.1', 80))  # reserved for documentation
    assert no_network.ATTEMPTS == ['example.org', '192.0.2.1']
    no_network.ATTEMPTS.clear()


def test_connections_of_started_processes_are_refused():
    done = subprocess.run([sys.executable, '-c', CONNECT], capture_output=True,
                          text=True)
    assert 'tests must not connect to example.org' in done.stderr


def test_this_machine_can_be_reached():
    with socket.create_server(('127.0.0.1', 0)) as server, \
            socket.create_connection(('localhost', server.getsockname()[1])) as client:
        assert server.accept()[1] == client.getsockname()
    assert not no_network.ATTEMPTS
