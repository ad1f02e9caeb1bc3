"""A server process: its address, its signals and its end."""

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Collection
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from prime_xmc.serving.served_model import ModelSlot

logger = logging.getLogger(__name__)

NO_TOKEN = "none"
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_MIN_TOKEN = 16  # characters


def check_token(token: object, host: str) -> str | None:
    """Return the token that requests need, None where they need none.

    Args:
        token: Token; None: there is none, which is for addresses of this machine alone; "none": there is none, and
            anybody who reaches the server may use it.
        host: Address to listen on.

    Raises:
        ValueError: If there has to be a token, or it cannot be one.
    """
    if token is None:
        if is_loopback(host):
            return None
        raise ValueError(
            f"host={host} can be reached from other machines: give a token by the environment variable "
            "PRIME_XMC_TOKEN, or say token=none to let in whoever reaches it"
        )
    if token == NO_TOKEN:
        return None
    if not isinstance(token, str) or len(token) < _MIN_TOKEN or not token.isascii() or not _is_visible(token):
        got = f"{len(token)} characters" if isinstance(token, str) else f"a {type(token).__name__}"
        raise ValueError(
            f"expected a token of at least {_MIN_TOKEN} letters, digits and signs without blanks, got {got}: make one "
            'by `python -c "import secrets; print(secrets.token_urlsafe())"` and put it into PRIME_XMC_TOKEN'
        )
    return token


def _is_visible(token: str) -> bool:
    return token.isprintable() and " " not in token


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def allowed_hosts(hosts: Collection[str] | None, host: str, token: str | None) -> frozenset[str] | None:
    """Return the names by which requests may address the server, lower case; None: any.

    Args:
        hosts: Names that are given; None: this machine's own where it alone is served and there is no token, else any.
        host: Address that the server listens on.
        token: Token that requests need.
    """
    if hosts is not None:
        return frozenset(name.lower() for name in hosts) | LOCAL_HOSTS
    return LOCAL_HOSTS | {host} if token is None and is_loopback(host) else None


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of an address, which nobody can connect to before it listens.

    Raises:
        ValueError: If there is no such address, or it is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"expected port between 0 and 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host={host} is no address of this machine: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ValueError(f"cannot listen on host={host} port={port}: {error.strerror}; give another port=") from error
    bound.set_inheritable(True)
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: FastAPI, slot: ModelSlot, bound: socket.socket, *, shutdown_seconds: float | int, access_log: bool
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; SIGHUP has the model folder loaded again.

    Args:
        app: The application.
        slot: The model that it serves.
        bound: Socket to listen on.
        shutdown_seconds: Time in which requests that have come before the end are answered.
        access_log: Whether each request is a line of the log.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=int(shutdown_seconds),
    )
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its progress in starting is no news
    server = uvicorn.Server(config)
    # uvicorn raises a signal again once it has ended in good order, for whoever had a handler before.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(server, slot, bound))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    logger.info("ended: all requests are answered")


async def _serve(server: uvicorn.Server, slot: ModelSlot, bound: socket.socket) -> None:
    tasks: set[asyncio.Task] = set()

    def reload() -> None:
        task = asyncio.create_task(slot.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    await server.serve(sockets=[bound])
