"""The server is a program: pytest does not look for doctests in it."""

collect_ignore_glob = ["command_server.py"]
