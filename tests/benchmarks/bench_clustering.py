"""Time, memory and quality of balanced_clusters, and its speed against the plain loop over nodes.

python tests/benchmarks/bench_clustering.py --n 1000000 --d 384 --size 8
"""

import argparse
import re
import runpy
import time
from pathlib import Path

import torch

from prime_xmc.index.clustering import balanced_clusters


def peak_gib():
    """Return the largest resident set since the mark was last cleared (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="rows")
    parser.add_argument("--d", type=int, default=384, help="columns")
    parser.add_argument("--size", type=int, default=8, help="rows per cluster")
    parser.add_argument("--loop-n", type=int, default=20_000, help="rows of the comparison with the plain loop")
    arguments = parser.parse_args()
    plain = runpy.run_path(str(Path(__file__).parents[1] / "index" / "test_clustering.py"))

    x = plain["nested_groups"](arguments.n, arguments.d)
    few = x[: arguments.loop_n].clone()

    def report(name, cluster, rows):
        start = time.perf_counter()
        clusters = cluster(rows, len(rows) // arguments.size, seed=0)
        seconds, peak = time.perf_counter() - start, peak_gib()
        similarity = plain["mean_similarity"](rows, clusters)
        print(f"{name}, {len(rows)} rows: {seconds:.2f} s, similarity {similarity:.4f}, peak memory {peak:.2f} GiB")
        return seconds

    print(f"{arguments.d} columns, float32, clusters of {arguments.size}, {torch.get_num_threads()} threads")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data
    print(f"resident memory with the data {peak_gib():.2f} GiB")
    report("balanced_clusters", balanced_clusters, x)
    ratio = report("plain loop", plain["cluster_with_a_loop"], few) / report(
        "balanced_clusters", balanced_clusters, few
    )
    print(f"the plain loop takes {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
