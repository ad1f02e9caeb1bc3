"""Injections of faults are programs: pytest does not look for doctests in them."""

collect_ignore_glob = [
    "fault_*.py",
    "run.py",
    "comparing.py",
    "findings.py",
    "forks.py",
    "fuzzing.py",
    "hostile.py",
    "toys.py",
]
