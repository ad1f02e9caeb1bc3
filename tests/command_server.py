"""Runs the package's commands and Python code in forks of one process that has imported everything already.

Started as `python command_server.py <socket>`; a client sends one JSON object with the file descriptors of its standard
streams and receives the exit status. Importing the libraries takes longer than most commands do in the tests.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback

from prime_xmc.command_line.usage import COMMANDS

# What the commands import only when they are under way, and what takes longest of it.
LATER = (
    *("prime_xmc.assemble", "prime_xmc.stages", "prime_xmc.export.bundle", "prime_xmc.export.predictor", "faiss"),
    *("lightning.pytorch", "torch._dynamo", "transformers.models.bert.modeling_bert", "torchmetrics", "sklearn"),
)


def serve(address: str) -> None:
    """Answer requests, each in a fork of its own, until the process is ended."""
    files = {"export": "export.__main__"}
    for module in LATER:
        importlib.import_module(module)
    modules = {command: importlib.import_module(f"prime_xmc.{files.get(command, command)}") for command in COMMANDS}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks: their clients do
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)  # its appearance says that the server is ready
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _answer(connection, modules)
        connection.close()


def _answer(connection: socket.socket, modules: dict) -> None:
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = [f"prime-xmc-{request['command']}", *request["arguments"]]
    try:
        if request["command"] == "python":
            runpy.run_path(request["arguments"][0], run_name="__main__")
        else:
            modules[request["command"]].main()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(f"{status}\n".encode())
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
