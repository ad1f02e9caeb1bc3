"""Benchmarks are programs: pytest does not look for doctests in them."""

collect_ignore_glob = ["bench_*.py", "run.py", "common.py", "training.py", "new_labels.py"]
