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

plain = runpy.run_path(str(Path(__file__).parents[1] / "index" / "test_clustering.py"))


def peak_gib():
    """Return the largest resident set since the mark was last cleared (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20


def timed(cluster, x, size):
    """Return seconds and quality."""
    start = time.perf_counter()
    clusters = cluster(x, len(x) // size, seed=0)
    seconds = time.perf_counter() - start
    return seconds, plain["mean_similarity"](x, clusters)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--n", type=int, default=100_000, help="rows")
parser.add_argument("--d", type=int, default=384, help="columns")
parser.add_argument("--size", type=int, default=8, help="rows per cluster")
parser.add_argument("--loop-n", type=int, default=20_000, help="rows of the comparison with the plain loop")
arguments = parser.parse_args()

x = plain["nested_groups"](arguments.n, arguments.d)
small = x[: arguments.loop_n].clone()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data
before = peak_gib()
start = time.perf_counter()
clusters = balanced_clusters(x, arguments.n // arguments.size, seed=0)
seconds = time.perf_counter() - start
peak = peak_gib()
print(f"{arguments.n} x {arguments.d} float32 into clusters of {arguments.size}, {torch.get_num_threads()} threads")
print(f"  {seconds:.1f} s, peak resident memory {peak:.2f} GiB, {peak - before:.2f} GiB of it for the clustering")
print(f"  mean similarity to the centroid {plain['mean_similarity'](x, clusters):.4f}")
for name, cluster in [("balanced_clusters", balanced_clusters), ("plain loop", plain["cluster_with_a_loop"])]:
    loop_seconds, quality = timed(cluster, small, arguments.size)
    print(f"{name} on {len(small)} rows: {loop_seconds:.2f} s, mean similarity {quality:.4f}")
