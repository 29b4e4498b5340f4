"""Refuse connections to other machines in this process, and list what was tried.

``tests/conftest.py`` imports it, and puts its folder on ``PYTHONPATH``, from which the
processes that tests start import ``sitecustomize``.
"""
import socket
from platform import node

ATTEMPTS = []
LOCAL = (None, '', 'localhost', '::1', node())


def check(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL and not host.startswith('127.'):
        ATTEMPTS.append(host)
        raise ConnectionRefusedError(f'tests must not connect to {host}')


def guard(name):
    """Let a method of sockets take only addresses of this machine."""
    method = getattr(socket.socket, name)

    def guarded(self, *arguments):
        if isinstance(arguments[-1], tuple):  # Unix sockets have a path instead
            check(arguments[-1][0])
        return method(self, *arguments)

    setattr(socket.socket, name, guarded)


def guarded_getaddrinfo(host, *arguments, getaddrinfo=socket.getaddrinfo, **options):
    check(host)
    return getaddrinfo(host, *arguments, **options)


for method in ('connect', 'connect_ex', 'sendto'):
    guard(method)
socket.getaddrinfo = guarded_getaddrinfo
