"""What runs in the process of a library: it reads a folder, trains, ranks, and writes rankings and cost there.

It is run as a script, `python worker.py <folder>`, by the Python of whatever environment has the library, so it imports
nothing of this package, and a library only in the function that needs it.

The folder has `settings.json`, `train.npz` (CSR matrix, float32), `labels.npz` (CSR matrix [query, label]) and
`queries_<name>.npz` for each name of queries; for `TEXT_LIBRARIES` also lists of texts, `train.json` and
`queries_<name>.json`. It gets `ranking_<name>.npz` (`ids`, `scores`) and `cost.json`.
"""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.sparse as sp


class BlockTimes:
    """Time of blocks, on the clock and of all processors, in seconds."""

    def __init__(self):
        self.seconds = self.cpu_seconds = 0.0

    @contextmanager
    def running(self):
        """Add the time of a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


def run_omikuji(folder, settings, train, labels, queries):
    """Yield the size of the model, then a ranking for each matrix of queries."""
    import omikuji

    parameters = omikuji.Model.default_hyper_param()
    for name, value in settings["parameters"].items():
        setattr(parameters, name, value)
    data = folder / "train.svm"
    write_svm(data, train, labels)
    with TRAINING.running():
        model = omikuji.Model.train_on_data(str(data), parameters, settings["threads"])
    model.save(str(folder / "model"))
    yield size_of(folder / "model")
    model.init_prediction_thread_pool(1)
    for matrix in queries:
        with RANKING.running():
            answers = [
                model.predict(list(zip(*row, strict=True)), settings["beam_size"], settings["k"])
                for row in rows_of(matrix)
            ]
        yield answers


def run_napkinxc(folder, settings, train, labels, queries):
    """Yield the size of the model, then a ranking for each matrix of queries."""
    from napkinxc.models import PLT

    plt = PLT(str(folder / "model"), seed=settings["seed"], threads=settings["threads"], **settings["parameters"])
    with TRAINING.running():
        plt.fit(train, [row.tolist() for row in np.split(labels.indices, labels.indptr[1:-1])])
    yield size_of(folder / "model")
    plt = PLT(str(folder / "model"), threads=1, **settings["parameters"])
    plt.load()
    for matrix in queries:
        with RANKING.running():
            answers = plt.predict_proba(matrix, top_k=settings["k"])
        yield answers


def run_xr_linear(folder, settings, train, labels, queries):
    """Yield the size of the model, then a ranking for each matrix of queries."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear import XLinearModel

    threads = settings["threads"]
    with TRAINING.running():
        embedding = LabelEmbeddingFactory.create(labels, train, method="pifa")
        tree = Indexer.gen(embedding, indexer_type="hierarchicalkmeans", seed=settings["seed"], threads=threads)
        model = XLinearModel.train(train, labels, tree, threads=threads, **settings["parameters"])
    model.save(str(folder / "model"))
    yield size_of(folder / "model")
    for matrix in queries:
        with RANKING.running():
            found = model.predict(matrix, beam_size=settings["beam_size"], only_topk=settings["k"], threads=1)
        yield [list(zip(*row, strict=True)) for row in rows_of(found)]


def run_xr_transformer(folder, settings, train, labels, queries):
    """Yield the size of the model, then a ranking for each matrix of queries."""
    import torch
    from pecos.xmc.xtransformer.model import XTransformer
    from pecos.xmc.xtransformer.module import MLProblemWithText

    threads = settings["threads"]
    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    given = settings["parameters"]
    training = XTransformer.TrainParams.from_dict({}, recursive=True)
    predicting = XTransformer.PredParams.from_dict({}, recursive=True)
    for tree, name in ((training.preliminary_indexer_params, "first_tree"), (training.refined_indexer_params, "tree")):
        update(tree, given[name] | {"seed": settings["seed"], "threads": threads})
    update(training.matcher_params_chain, given["matcher"])
    predicting.matcher_params_chain.truncate_length = given["max_length"]
    predicting.ranker_params.hlm_args.model_chain.only_topk = settings["beam_size"]
    texts = read_texts(folder, "train")
    with TRAINING.running():
        model = XTransformer.train(
            MLProblemWithText(texts, labels, X_feat=train),
            train_params=training,
            pred_params=predicting,
            beam_size=settings["beam_size"],
            threads=threads,
        )
    model.save(str(folder / "model"))
    yield size_of(folder / "model")
    torch.set_num_threads(1)
    for name, matrix in zip(settings["queries"], queries, strict=True):
        with RANKING.running():
            found = model.predict(
                read_texts(folder, f"queries_{name}"),
                X_feat=matrix,
                beam_size=settings["beam_size"],
                only_topk=settings["k"],
                batch_size=given["matcher"]["batch_size"],
                batch_gen_workers=1,
                threads=1,
            )
        yield [list(zip(*row, strict=True)) for row in rows_of(found)]


LIBRARIES = {
    "omikuji": run_omikuji,
    "napkinxc": run_napkinxc,
    "xr_linear": run_xr_linear,
    "xr_transformer": run_xr_transformer,
}
TEXT_LIBRARIES = ("xr_transformer",)
TRAINING, RANKING = BlockTimes(), BlockTimes()


def update(parameters, given):
    """Set parameters of PECOS; a name that it does not have is an error."""
    for name, value in given.items():
        if not hasattr(parameters, name):
            raise SystemExit(f"{type(parameters).__qualname__} of PECOS has no parameter {name}")
        setattr(parameters, name, value)


def read_texts(folder, name):
    """Return the texts that a file of the folder has."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def write_svm(path, matrix, labels):
    """Write the rows that have labels in the format of the Extreme Classification Repository."""
    kept = labels.indptr[:-1] < labels.indptr[1:]
    with path.open("w", encoding="ascii") as file:
        file.write(f"{kept.sum()} {matrix.shape[1]} {labels.shape[1]}\n")
        for (ids, _), (columns, values) in zip(rows_of(labels[kept]), rows_of(matrix[kept]), strict=True):
            features = (f"{column}:{value:.6g}" for column, value in zip(columns, values, strict=True))
            file.write(f"{','.join(map(str, ids))} {' '.join(features)}\n")


def rows_of(matrix):
    """Yield columns and values of each row of a CSR matrix, as lists."""
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        yield matrix.indices[start:end].tolist(), matrix.data[start:end].tolist()


def size_of(folder):
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def as_arrays(answers, k):
    """Return lists of (label, score), best first, as two arrays; -1 and -inf fill up."""
    ids, scores = np.full((len(answers), k), -1, dtype=np.int64), np.full((len(answers), k), -np.inf, dtype=np.float32)
    for row, answer in enumerate(answers):
        found = sorted(dict(answer).items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        ids[row, : len(found)] = [label for label, _ in found]
        scores[row, : len(found)] = [score for _, score in found]
    return ids, scores


def peak_memory():
    """Return the most memory of this process, in bytes. That of getrusage would include what it was started from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status does not say how much memory this process has used: expected Linux")


def main(folder):
    """Run the library that the settings name."""
    settings = json.loads((folder / "settings.json").read_text())
    train, labels = (sp.csr_matrix(sp.load_npz(folder / f"{name}.npz")) for name in ("train", "labels"))
    matrices = [sp.csr_matrix(sp.load_npz(folder / f"queries_{name}.npz")) for name in settings["queries"]]
    results = LIBRARIES[settings["library"]](folder, settings, train, labels, matrices)
    model_bytes = next(results)
    for name, answers in zip(settings["queries"], results, strict=True):
        ids, scores = as_arrays(answers, settings["k"])
        np.savez(folder / f"ranking_{name}.npz", ids=ids, scores=scores)
    cost = {
        "train_seconds": TRAINING.seconds,
        "train_cpu_seconds": TRAINING.cpu_seconds,
        "predict_cpu_seconds": RANKING.cpu_seconds,
        "peak_rss_bytes": peak_memory(),
        "model_bytes": model_bytes,
    }
    (folder / "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
