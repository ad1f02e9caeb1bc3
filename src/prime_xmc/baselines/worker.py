"""What runs in the process of a library: it reads a folder, trains, ranks, and writes rankings and cost there.

It is run as a script, `python worker.py <folder>`, by the Python of whatever environment has the library, so it imports
nothing of this package, and a library only in the function that needs it.

The folder has `settings.json` and `labels.npz` (CSR matrix [query, label]); for `VECTOR_LIBRARIES` `train.npz` (CSR
matrix, float32) and `queries_<name>.npz` for each name of queries; for `TEXT_LIBRARIES` lists of texts, `train.json`
and `queries_<name>.json`. It gets `ranking_<name>.npz` (`ids`, `scores`) and `cost.json`.
"""

import json
import logging
import re
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp


class BlockTimes:
    """Time of blocks, on the clock and of all processors, in seconds."""

    def __init__(self):
        self.seconds = self.cpu_seconds = 0.0

    @contextmanager
    def running(self):
        """Add the time of a block."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += cpu_seconds() - cpu


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

    seed = settings["seed"] + 1  # to the library, 0 and 1 are the same
    plt = PLT(str(folder / "model"), seed=seed, threads=settings["threads"], **settings["parameters"])
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
    from pecos.xmc import Indexer, LabelEmbeddingFactory, MLModel
    from pecos.xmc.xlinear import XLinearModel

    threads = settings["threads"]
    known = {field.name for each in (XLinearModel, MLModel) for field in fields(each.TrainParams)}
    for name in settings["parameters"]:  # PECOS passes over what it does not know
        if name not in known - {"hlm_args", "threads"} | {"negative_sampling_scheme", "post_processor"}:
            raise SystemExit(f"XLinearModel of PECOS has no parameter {name}")
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
    torch.set_float32_matmul_precision(given["matmul_precision"])
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


def run_attentionxml(folder, settings, train, labels, queries):
    """Yield the size of the model, then a ranking for each matrix of queries."""
    import torch
    from libmultilabel.common_utils import AttributeDict
    from libmultilabel.nn import attentionxml, nn_utils
    from libmultilabel.nn.data_utils import PAD, UNK, tokenize
    from lightning import Callback, Trainer, seed_everything

    given, num_labels = settings["parameters"], labels.shape[1]
    pattern = given.get("token_pattern")
    words_of = splitter(pattern, tokenize)
    found, sizes = [], []

    class RecordedModel(attentionxml.PLTModel):
        """Keeps what it predicts: the library writes scores with four digits, and stumbles over labels of padding."""

        def predict_step(self, *arguments, **options):
            found.append(super().predict_step(*arguments, **options))
            return found[-1]

    class UntestedTrainer(Trainer):
        """Computes no metrics, for which the library would score all labels of all queries; notes sizes of networks."""

        def predict(self, model=None, *arguments, **options):
            sizes.append(sum(tensor.nbytes for tensor in model.state_dict().values()))
            return super().predict(model, *arguments, **options)

        def test(self, *arguments, **options):
            return []

    class Progress(Callback):
        """Says now and then how far training is, since the library's bars say nothing to a file."""

        said = time.monotonic()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if time.monotonic() >= Progress.said + 20:
                Progress.said = time.monotonic()
                logging.info("%s: batch %d of %d", place(trainer, module), batch_idx + 1, trainer.num_training_batches)

        def on_validation_end(self, trainer, module):
            found = ", ".join(f"{name} {float(value):.4f}" for name, value in trainer.callback_metrics.items())
            logging.info("%s: %s", place(trainer, module), found)

    class TellingTrainer(Trainer):
        def __init__(self, *arguments, callbacks, **options):
            super().__init__(*arguments, callbacks=[*callbacks, Progress()], **options)

    def place(trainer, module):
        return f"{type(module.network).__name__}, epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"

    attentionxml.PLTModel, attentionxml.Trainer = RecordedModel, UntestedTrainer
    nn_utils.L = SimpleNamespace(Trainer=TellingTrainer)
    if pattern is not None:  # the tree of labels is made of words that are joined by spaces
        attentionxml.Preprocessor = partial(attentionxml.Preprocessor, tfidf_params={"token_pattern": r"(?u)\S+"})
    seed_everything(settings["seed"])
    torch.set_num_threads(settings["threads"])
    num_clusters = 2 ** max(0, int(np.ceil(np.log2(num_labels / given["trainer"]["cluster_size"]))))
    beam_width = min(given["trainer"]["beam_width"], num_clusters)
    num_rows = labels.shape[0]
    num_validation = min(given["num_validation"], max(1, num_rows // 10))
    held_out = np.random.default_rng(settings["seed"]).permutation(num_rows)[:num_validation]
    rows = zip(read_texts(folder, "train"), rows_of(labels), strict=True)
    with TRAINING.running():
        items = [{"text": words_of(text), "label": [str(label) for label in ids]} for text, (ids, _) in rows]
        words = [PAD, UNK, *sorted({word for item in items for word in item["text"]} - {PAD, UNK})]
        vectors = torch.randn(len(words), given["dim"]) * 0.1
        if given["word_vectors"] is not None:
            vectors = read_word_vectors(Path(given["word_vectors"]), words, vectors)
        vectors[0] = 0  # padding
        config = AttributeDict(
            {
                **ATTENTIONXML_DEFAULTS,
                **given["trainer"],
                "beam_width": beam_width,
                "early_stopping_metric": given["trainer"]["val_metric"],
                "cpu": not torch.cuda.is_available(),
                "loss_function": "binary_cross_entropy_with_logits",
                "monitor_metrics": [given["trainer"]["val_metric"]],
                "checkpoint_dir": str(folder / "model"),
                # Clusters have equal sizes, up to one label: no query has fewer labels to choose from.
                "save_k_predictions": min(settings["k"], beam_width * (num_labels // num_clusters)),
                "log_path": str(folder / "log" / "log.json"),
                "predict_out_path": str(folder / "predicted.txt"),
            }
        )
        trainer = attentionxml.PLTTrainer(
            config,
            [str(label) for label in range(num_labels)],
            vectors,
            dict(zip(words, range(len(words)), strict=True)),
        )
        chosen = set(held_out.tolist())
        trainer.fit(
            {
                "train": [item for row, item in enumerate(items) if row not in chosen],
                "val": [items[row] for row in held_out.tolist()],
            }
        )
    trainer.test(items[:1])
    # Both networks, of which the library's files hold what the optimiser keeps, too.
    yield sum(sizes) + trainer.get_cluster_path().stat().st_size
    torch.set_num_threads(1)
    for name in settings["queries"]:
        found.clear()
        texts = read_texts(folder, f"queries_{name}")
        with RANKING.running():
            trainer.test([{"text": words_of(text), "label": []} for text in texts])
        pairs = [zip(*rows, strict=True) for part in found for rows in zip(*part.values(), strict=True)]
        yield [[(int(label), float(score)) for label, score in row if score > -np.inf] for row in pairs]


LIBRARIES = {
    "omikuji": run_omikuji,
    "napkinxc": run_napkinxc,
    "xr_linear": run_xr_linear,
    "xr_transformer": run_xr_transformer,
    "attentionxml": run_attentionxml,
}
TEXT_LIBRARIES = ("xr_transformer", "attentionxml")
VECTOR_LIBRARIES = ("omikuji", "napkinxc", "xr_linear", "xr_transformer")
TREE_LIBRARIES = ("omikuji", "xr_linear", "xr_transformer")  # which take a beam
ATTENTIONXML_DEFAULTS = {
    **dict.fromkeys(("momentum", "lr_scheduler", "scheduler_config")),
    **{"multiclass": False, "silent": True, "shuffle": True, "data_workers": 0, "metric_threshold": 0.5},
    **{f"limit_{stage}_batches": 1.0 for stage in ("train", "val", "test")},
}
# Names that parameters can have, by their place in them, where no library refuses others.
PARAMETERS = {
    "xr_transformer": {"": {"matmul_precision", "max_length", "first_tree", "tree", "matcher"}},
    "attentionxml": {
        "": {"word_vectors", "dim", "token_pattern", "num_validation", "trainer"},
        "trainer": {
            *("max_seq_length", "cluster_size", "beam_width", "epochs", "patience", "val_metric", "batch_size"),
            *("eval_batch_size", "optimizer", "learning_rate", "weight_decay", "network_config"),
            *ATTENTIONXML_DEFAULTS,
        },
    },
}
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


def splitter(pattern, otherwise):
    """Return a function of a text that finds its words, in lower case: by a regular expression, if there is one."""
    if pattern is None:
        return otherwise
    expression = re.compile(pattern)
    return lambda text: [word for word in expression.findall(text.lower()) if word]


def read_word_vectors(path, words, vectors):
    """Return vectors of words, those of a file in GloVe's format where it has the word."""
    import torch

    places, vectors, dim = {word: row for row, word in enumerate(words)}, vectors.clone(), vectors.shape[1]
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n ")
            if number == 1:
                header = re.fullmatch(r"\d+ (\d+)", line)  # of word2vec and fastText: words, and numbers of each
                size = int(header[1]) if header else line.count(" ")
                if size != dim:
                    named = "a word" if header else line.split(" ")[0]
                    raise SystemExit(f"{path}: {named} has {size} numbers, expected dim={dim}")
                if header:
                    continue
            word, *values = line.rsplit(" ", dim)  # a word may have spaces
            if word in places:
                try:
                    vectors[places[word]] = torch.tensor([float(value) for value in values]).reshape(dim)
                except (ValueError, RuntimeError):  # the latter where there are fewer
                    raise SystemExit(f"{path}, line {number}: expected {dim} numbers, got {line[:80]!r}") from None
    return vectors


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


def cpu_seconds():
    """Return the seconds of all processors that this process has taken, and its own processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def gpu_use():
    """Return the name of the GPU that has computed and the most bytes of it that were taken; nothing where none has."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    peak = max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    return {"device": torch.cuda.get_device_name(), "peak_device_memory_bytes": peak}


def peak_memory():
    """Return the most memory of this process, in bytes. That of getrusage would include what it was started from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status does not say how much memory this process has used: expected Linux")


def main(folder):
    """Run the library that the settings name."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what it says is read for the progress
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    names = ["labels"]
    if settings["library"] in VECTOR_LIBRARIES:
        names += ["train", *(f"queries_{name}" for name in settings["queries"])]
    labels, *matrices = (sp.csr_matrix(sp.load_npz(folder / f"{name}.npz")) for name in names)
    train, queries = (matrices[0], matrices[1:]) if matrices else (None, None)
    results = LIBRARIES[settings["library"]](folder, settings, train, labels, queries)
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
        **gpu_use(),
    }
    (folder / "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
