"""The model card: the README.md of an exported model, for people and for the hub."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SOURCES = {
    "text": "the label's text",
    "centroid": "the centroid of its training queries",
    "free_vector": "a vector that it shares with similar labels",
}

_POOLINGS = {"mean": "mean pooling", "last": "last-token pooling", "cls": "first-token pooling"}


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return the card's Markdown, with the front matter that the hub reads.

    Args:
        config: The content of the model's prime_config.json.
        metrics: What is called `test/<metric>` is shown in the table, as a fraction in [0, 1]; empty where there are
            no results yet.
    """
    settings, prototypes = config["settings"], config["prototypes"]
    return _CARD.format(
        dataset=settings.get("dataset", "an unnamed data set"),
        num_labels=f"{prototypes['num_labels']:,}",
        pooling=_POOLINGS[config["encoder"].get("pooling", "mean")],  # older exports do not say
        dim=prototypes["dim"],
        made_of=_made_of(prototypes["sources"]),
        max_length=config["max_length"],
        package_version=config["package_version"],
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        results=_results_table(metrics),
    )


def _made_of(sources: Sequence[str]) -> str:
    if list(sources) == ["text"]:
        return "Each label has a prototype, the embedding of its text."
    *parts, last = (_SOURCES[source] for source in sources)
    made_of = f"{', '.join(parts)} and {last}" if parts else last
    return f"Each label has a prototype, made by the Label Prototype Network from {made_of}."


def _results_table(metrics: Mapping[str, Any]) -> str:
    results = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    if not results:
        return "Not evaluated yet."
    rows = [f"| {name} | {100 * value:.2f} |" for name, value in results.items()]
    return "\n".join(["| metric (test split) | percent |", "|---|---:|", *rows])


_CARD = """\
---
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- extreme-classification
- multi-label-classification
- prime
metrics:
- precision
- recall
---

# PRIME on {dataset}

Ranks {num_labels} labels for a text. A text encoder ({pooling}, {dim} dimensions, unit length) embeds the query.
{made_of}
A label's score is the cosine of query and prototype.

## How to load it

```python
import prime_xmc

predictor = prime_xmc.load(".")  # this folder
for prediction in predictor.predict(["terminal multiplexer with tabs"], top_k=5):
    print(prediction.query, [(label.text, label.score) for label in prediction.labels])
```

or, in a shell, `echo "terminal multiplexer with tabs" | python -m prime_xmc.predict model=<this folder> top_k=5`.
The encoder alone opens in `sentence_transformers.SentenceTransformer` and in `transformers.AutoModel`; the labels'
prototypes, in the same space, are in `prototypes.safetensors`, their texts in `labels.jsonl`.

## Results

{results}

## Limits

- It knows the labels of its data set and no others.
- Of a text, it reads the first {max_length} tokens.
- Scores are cosines, not probabilities: they order the labels of one query, and need not compare between queries.
- Rare labels are predicted from little evidence, and what is biased in the data set is so here.

## How it was made

With prime_xmc {package_version} on {dataset}:

```json
{settings}
```
"""
