"""Addresses, tokens and names."""

import socket

import pytest

from prime_xmc.serving.server import LOCAL_HOSTS, address_of, allowed_hosts, bind, check_token, is_loopback

TOKEN = "a-token-for-these-tests"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_which_addresses_are_of_this_machine_alone(host, expected):
    assert is_loopback(host) is expected


def test_other_addresses_need_a_token_or_the_word_that_there_is_none():
    assert check_token(None, "127.0.0.1") is None
    with pytest.raises(ValueError, match=r"host=0\.0\.0\.0 can be reached .* PRIME_XMC_TOKEN, or say token=none"):
        check_token(None, "0.0.0.0")
    assert check_token("none", "0.0.0.0") is None
    assert check_token(TOKEN, "0.0.0.0") == TOKEN


@pytest.mark.parametrize(
    ("token", "got"),
    [("short", "5 characters"), ("", "0 characters"), (1234567890123456789, "a int"), ("a token with blanks", "19"),
     ("ü" * 20, "20 characters"), ("a" * 20 + "\n", "21 characters")],
)  # fmt: skip
def test_tokens_that_are_none(token, got):
    with pytest.raises(ValueError, match=f"expected a token of at least 16 .* got {got}"):
        check_token(token, "127.0.0.1")


def test_names_by_which_the_server_may_be_addressed():
    assert allowed_hosts(None, "127.0.0.1", None) == LOCAL_HOSTS
    assert allowed_hosts(None, "127.0.0.5", None) == LOCAL_HOSTS | {"127.0.0.5"}
    assert allowed_hosts(None, "127.0.0.1", TOKEN) is None
    assert allowed_hosts(None, "0.0.0.0", None) is None  # token=none
    assert allowed_hosts(["Labels.example.org"], "0.0.0.0", TOKEN) == LOCAL_HOSTS | {"labels.example.org"}


def test_an_address_that_is_taken_is_named():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address_of(first) == f"http://127.0.0.1:{port}"
        first.listen()
        with pytest.raises(ValueError, match=f"cannot listen on host=127.0.0.1 port={port}: Address already in use"):
            bind("127.0.0.1", port)


def test_nobody_connects_before_the_server_listens():
    with bind("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("no.such.host.invalid", 8000, "host=no.such.host.invalid is no address of this machine"),
        ("a" * 64, 8000, "is no address of this machine"),  # longer than a name can be
        ("127.0.0.1", 65536, "expected port between 0 and 65535, got 65536"),
        ("127.0.0.1", -1, "expected port between 0 and 65535, got -1"),
    ],
)
def test_addresses_that_there_are_not(host, port, problem):
    with pytest.raises(ValueError, match=problem):
        bind(host, port)
