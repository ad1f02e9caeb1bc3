"""Methods of other libraries, each in a process of its own: two of them in one process get in each other's way."""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from prime_xmc.baselines import worker
from prime_xmc.baselines.environments import LibraryEnvironment
from prime_xmc.baselines.features import TfIdf, check_pattern, labels_matrix
from prime_xmc.baselines.method import Cost, LabelledTexts, Outcome, Stopwatch, TextSet, Top, default_threads
from prime_xmc.files import write_json

logger = logging.getLogger(__name__)

_LINES = 8  # of what a process that failed has said
_SECONDS = 60  # from one message on a process that is still running to the next
_CHARACTERS = 120  # of what it said last, in such a message
_BYTES = 2**16  # at the end of what it has said, which are searched for the last lines
# What the process of a library gets of the environment, besides what is set for it: which GPU, where models are, ...
_PASSED_ON = re.compile(r"(?!HF_TOKEN)(CUDA|NVIDIA|HF|LC)_\w+|HOME|LANG|LD_LIBRARY_PATH|XDG_CACHE_HOME")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and steps of the cursor


class ExternalMethod:
    """A method of a library, on tf-idf vectors or on the texts themselves, or on both.

    Args:
        library: Name of the function of `worker` that calls it: omikuji, napkinxc, xr_linear, ...
        parameters: What the library calls its settings; others have the library's own defaults.
        tfidf: Vectors of texts; None: for a library that reads the texts alone.
        environment: Environment that has the library; None: it is installed beside this package.
        label_texts: Whether label texts are training queries, too.
        beam_size: Nodes of a tree that are followed at once; None: the library has no such setting.
        seed: Seed, where the library takes one.
        threads: Threads to train with; None: as many as there are processors.

    Raises:
        ValueError: If the library is to be installed beside this package and is not, takes vectors and has none, is to
            find words by what is no regular expression of them, or gets a setting that it does not have.
    """

    def __init__(
        self,
        library: str,
        parameters: Mapping[str, Any],
        tfidf: TfIdf | None = None,
        environment: LibraryEnvironment | None = None,
        label_texts: bool = True,
        beam_size: int | None = None,
        seed: int = 0,
        threads: int | None = None,
    ):
        if library not in worker.LIBRARIES:
            raise ValueError(f"method.library={library}: expected one of {', '.join(worker.LIBRARIES)}")
        if tfidf is None and library in worker.VECTOR_LIBRARIES:
            raise ValueError(f"{library} takes vectors of texts: expected method.tfidf, which makes them")
        if beam_size is not None and library not in worker.TREE_LIBRARIES:
            raise ValueError(f"method.beam_size={beam_size}: {library} has no such setting; see method.parameters")
        _check_names(library, parameters)
        if environment is None and find_spec(library) is None:
            raise ValueError(f"this method needs {library}: pip install '.[baselines]' in the clone")
        if parameters.get("token_pattern") is not None:
            check_pattern("method.parameters.token_pattern", parameters["token_pattern"])
        self.library = library
        self.parameters = dict(parameters)
        self.tfidf = tfidf
        self.environment = environment
        self.label_texts = label_texts
        self.beam_size = beam_size
        self.seed = seed
        self.threads = threads or default_threads()

    def rank(self, training: LabelledTexts, queries: Mapping[str, TextSet], k: int) -> Outcome:
        """Make vectors, train and rank in a process of the library, and return the k best labels of each query.

        Raises:
            ValueError: If the library's environment cannot be made.
            RuntimeError: If the process fails, with what it said last.
        """
        python = Path(sys.executable) if self.environment is None else self.environment.python()
        texts = training.with_label_texts() if self.label_texts else training
        making, transforming = Stopwatch(), Stopwatch()
        rows, vectoriser_bytes = {}, 0
        if self.tfidf is not None:
            with making.running():
                vectoriser = self.tfidf.learn(training)
                rows["train"] = vectoriser.rows(texts.queries)
            with transforming.running():
                rows |= {f"queries_{name}": vectoriser.rows(each) for name, each in queries.items()}
            vectoriser_bytes = vectoriser.model_bytes
        settings = {
            "library": self.library,
            "parameters": self.parameters,
            "beam_size": self.beam_size,
            "seed": self.seed,
            "threads": self.threads,
            "k": min(k, len(training.labels)),
            "queries": list(queries),
        }
        with tempfile.TemporaryDirectory(prefix="prime_xmc-") as name:
            folder = Path(name)
            write_json(folder / "settings.json", settings)
            for matrix_name, matrix in {"labels": labels_matrix(texts), **rows}.items():
                sp.save_npz(folder / f"{matrix_name}.npz", matrix, compressed=False)
            if self.library in worker.TEXT_LIBRARIES:
                write_json(folder / "train.json", list(texts.queries.strings))
                for query_name, each in queries.items():
                    write_json(folder / f"queries_{query_name}.json", list(each.strings))
            logger.info("%s: training in a process of its own", self.library)
            run_worker(python, folder, self.threads, self.library)
            cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
            rankings = {each: _read_ranking(folder / f"ranking_{each}.npz", k) for each in queries}
        num_queries = max(1, sum(map(len, queries.values())))
        on_gpu = {name: cost[name] for name in ("device", "peak_device_memory_bytes") if name in cost}
        answering = 1000 * (transforming.cpu_seconds + cost["predict_cpu_seconds"]) / num_queries
        return Outcome(
            rankings,
            Cost(
                making.seconds + cost["train_seconds"],
                making.cpu_seconds + cost["train_cpu_seconds"],
                cost["peak_rss_bytes"],
                vectoriser_bytes + cost["model_bytes"],
                None if on_gpu else answering,
                **on_gpu,
            ),
        )


def run_worker(python: Path, folder: Path, threads: int, name: str) -> None:
    """Run `worker` on a folder to its end; every minute, log how long that has taken and what the library said last.

    Args:
        python: Python that has the library.
        folder: Folder with the input.
        threads: Threads of libraries that ask the environment variable OMP_NUM_THREADS.
        name: Name of the library, for the log.

    Raises:
        RuntimeError: If it fails, with what it said last.
    """
    # -I: neither the current folder nor PYTHONPATH puts another package in the place of the library's
    command = [str(python), "-I", "-u", str(Path(worker.__file__)), str(folder)]
    environment = {
        **{key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)},
        **{"OMP_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        "TMPDIR": str(folder),  # what it writes in between goes with its input when the process is killed
    }
    path = folder / "said.txt"
    start = time.monotonic()
    with path.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while (status := _status(process)) is None:
                last = "".join(_last_lines(path, 1))[:_CHARACTERS]
                logger.info("%s: %d s; it said last: %s", name, time.monotonic() - start, last or "nothing")
        except BaseException:  # Ctrl-C and the like
            process.kill()
            process.wait()
            raise
    if status != 0:
        last = "\n".join(_last_lines(path, _LINES))
        raise RuntimeError(f"{command[0]}: the process of the library ended with status {status}:\n{last}")


def _check_names(library: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the library would pass over in silence."""
    for place, known in worker.PARAMETERS.get(library, {}).items():
        key = f"method.parameters.{place}" if place else "method.parameters"
        for name in (parameters.get(place) or {}) if place else parameters:
            if name not in known:
                expected = ", ".join(sorted(known))
                raise ValueError(f"{key}.{name}: {library} has no such setting; expected one of {expected}")


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process, and return its status, or None if it is still running after `_SECONDS`."""
    try:
        return process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file that have a letter or a digit; what a bar has overwritten is none of them.

    There are none where it cannot be read: they are for people, and end nothing.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _BYTES))
            text = _ESCAPES.sub("", file.read().decode("utf-8", errors="replace"))
    except OSError:
        return []
    shown = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return [line for line in shown if any(map(str.isalnum, line))][-count:]


def _read_ranking(path: Path, k: int) -> Top:
    """Read a ranking of a process, in which there may be fewer than k columns."""
    with np.load(path, allow_pickle=False) as archive:
        ids, scores = archive["ids"], archive["scores"]
    missing = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(ids, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
