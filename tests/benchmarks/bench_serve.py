"""`prime_xmc.serve` under load: requests of one text each, from another process, against a model of LF-Debian-18K.

The model is that of a default run. Give its folder by the environment variable PRIME_XMC_BENCH_MODEL; without it, the
newest of outputs/train/ that knows LF-Debian-18K is taken, and where there is none, the rows are skipped. The texts are
the test queries. For each scorer there are two loads:

- Connections that send the next request as soon as they have an answer: how many requests are answered in a second.
- Requests that come at random times, a hundred in a second on average, whether or not earlier ones are answered: how
  long an answer takes, from the time at which the request was due.

The bare `Predictor` ranks the same texts in large batches right before and after, with the server idle. Client, server
and everything else share the cores.
"""

import asyncio
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from typing import Any

from common import ROOT, Row, Target, environment, fresh_process, main

SCORERS = ("theta", "ensemble")
CONNECTIONS = 16
RATE = 100  # requests in a second
SECONDS = 20.0
BATCH = 1024  # texts of a batch of the bare Predictor
DATA = ROOT / "src" / "prime_xmc" / "datasets" / "LF-Debian-18K"
NUM_LABELS = 17_953
TARGETS = tuple(
    target
    for scorer in SCORERS
    for target in (
        Target(f"serving, {scorer}: requests in a second, {CONNECTIONS} connections", "≥", 100, "/s"),
        Target(f"serving, {scorer}: p99 of answers at {RATE} requests in a second", "≤", 100, "ms"),
        Target(f"serving, {scorer}: texts in a second / bare Predictor in batches of {BATCH:,}", "shown", 0, "x"),
    )
)


def rows(scale: float) -> Iterator[Row]:
    model = find_model()
    if model is None:
        for target in TARGETS:
            yield target.skipped("no model of LF-Debian-18K: PRIME_XMC_BENCH_MODEL=<run>/model")
        return
    seconds = max(SECONDS * scale, 1)
    with server(model) as address:
        for scorer, (speed, delay, share) in zip(SCORERS, (TARGETS[:3], TARGETS[3:]), strict=True):
            before = bare_speed(str(model), scorer, scale)
            fresh_process(load, address, scorer, 2.0, 0.0)  # the first requests are slower
            earlier = counted(address)
            found, _ = fresh_process(load, address, scorer, seconds, 0.0)
            texts, batches, cpu = (now - then for now, then in zip(counted(address), earlier, strict=True))
            note = (
                f"p50 {found['p50']:.0f} ms, p99 {found['p99']:.0f} ms, {texts / batches:.1f} texts in a batch, "
                f"{cpu / texts * 1e3:.1f} ms of a processor a text, {seconds:g} s"
            )
            yield speed.row(found["speed"], f"{note}; {failures(found)}", **found)
            offered, _ = fresh_process(load, address, scorer, seconds, float(RATE))
            note = f"p50 {offered['p50']:.0f} ms, {offered['speed']:.0f} answered in a second"
            yield delay.row(offered["p99"], f"{note}; {failures(offered)}", **offered)
            bare = [before, bare_speed(str(model), scorer, scale)]
            yield share.row(found["speed"] * 2 / sum(bare), f"{bare[0]:.0f} and {bare[1]:.0f} texts/s without a server")


def failures(found: dict[str, Any]) -> str:
    return "all with status 200" if found["failed"] == 0 else f"{found['failed']} failed"


def find_model() -> Path | None:
    """Return the folder of the model to serve."""
    given = os.environ.get("PRIME_XMC_BENCH_MODEL")
    if given:
        return Path(given).expanduser().absolute()
    configs = (ROOT / "outputs" / "train").glob("*/model/prime_config.json")
    models = [path for path in configs if json.loads(path.read_bytes())["prototypes"]["num_labels"] == NUM_LABELS]
    complete = [path for path in models if (path.parent / "ensemble.json").is_file()]
    return max(complete, key=lambda path: path.stat().st_mtime).parent if complete else None


@contextmanager
def server(model: Path) -> Iterator[str]:
    """Run a server with its default settings, and yield its address."""
    command = [sys.executable, "-m", "prime_xmc.serve", f"model={model}", "port=0", "device=cpu", "watch_seconds=null"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "scorer=ensemble", "other_scorers=[theta]"], env=environment(), stderr=log, text=True
        )
        try:
            for _ in count():
                log.seek(0)
                content = log.read()
                if found := re.search(r"(http://\S+) serves", content):
                    time.sleep(0.5)  # it says so just before it listens
                    yield found[1]
                    return
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended before it answered:\n{content}")
                time.sleep(0.2)
        finally:
            process.terminate()
            process.wait()


def counted(address: str) -> list[float]:
    """Return the numbers of texts and batches that a server has answered, and the seconds of a processor it has had."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        page = answer.read().decode()
    names = ("prime_xmc_batch_texts_sum", "prime_xmc_batch_texts_count", "process_cpu_seconds_total")
    values = [re.search(rf"^{name} (\S+)$", page, re.MULTILINE) for name in names]
    return [float(value[1]) for value in values if value is not None]


def texts() -> list[str]:
    """Return the test queries of LF-Debian-18K."""
    with gzip.open(DATA / "tst.json.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["title"] for line in lines]


def bare_speed(model: str, scorer: str, scale: float) -> float:
    """Return the texts that the Predictor ranks in a second."""
    return fresh_process(rank_in_batches, model, scorer, scale)[0]


def rank_in_batches(model: str, scorer: str, scale: float) -> float:
    """Rank test queries for a while, and return their number in a second; called in a process of its own."""
    import prime_xmc

    predictor = prime_xmc.load(model, scorer=scorer)
    queries = texts()[: max(round(4 * BATCH * scale), 64)]
    predictor.predict(queries[:64], top_k=5)
    start = time.perf_counter()
    for first in range(0, len(queries), BATCH):
        predictor.predict(queries[first : first + BATCH], top_k=5)
    return len(queries) / (time.perf_counter() - start)


def load(address: str, scorer: str, seconds: float, rate: float) -> dict[str, float]:
    """Send requests for a while, and return how fast they were answered; called in a process of its own.

    Args:
        address: URL of the server.
        scorer: Scorer to ask for.
        seconds: Time.
        rate: Mean number of requests in a second; 0: each connection sends the next one when it has an answer.
    """
    return asyncio.run(_load(address, scorer, seconds, rate))


async def _load(address: str, scorer: str, seconds: float, rate: float) -> dict[str, float]:
    host, port = address.removeprefix("http://").split(":")
    queries = cycle(texts())
    delays: list[float] = []
    failed = 0

    def request() -> bytes:
        body = json.dumps({"texts": [next(queries)], "top_k": 5, "scorer": scorer}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        return head.encode() + b"\r\n\r\n" + body

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: float) -> None:
        nonlocal failed
        writer.write(request())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        failed += not head.startswith(b"HTTP/1.1 200 ")
        delays.append(time.perf_counter() - due)

    end = time.perf_counter() + seconds

    async def keep_asking() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < end:
            await answered(reader, writer, time.perf_counter())
        writer.close()

    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask_once(due: float) -> None:
        connection = idle.pop() if idle else await asyncio.open_connection(host, int(port))
        await answered(*connection, due)
        idle.append(connection)

    start = time.perf_counter()
    if rate == 0:
        await asyncio.gather(*(keep_asking() for _ in range(CONNECTIONS)))
    else:
        times, tasks, due = random.Random(0), [], start
        while (due := due + times.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(ask_once(due)))
        await asyncio.gather(*tasks)
        for _, writer in idle:
            writer.close()
    passed = time.perf_counter() - start
    delays.sort()
    percentile = {name: delays[min(len(delays) - 1, int(len(delays) * share))] * 1e3 for name, share in QUANTILES}
    return {"speed": len(delays) / passed, "failed": float(failed), "requests": float(len(delays))} | percentile


QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))

if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
