"""`python -m prime_xmc.prepare`: raw files to a prepared data set, once, and what is in it."""

import sys

from hydra.utils import instantiate
from omegaconf import DictConfig

from prime_xmc.configs import run_app
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.prepare import describe, prepare
from prime_xmc.data.raw import RawFiles
from prime_xmc.data.tokenizer import load_tokenizer


def raw_files(dataset: DictConfig) -> RawFiles:
    """Return the raw files that a dataset configuration names, generated if its `dir` says how and need be."""
    dataset = instantiate(dataset)
    return RawFiles(
        directory=dataset.dir,
        name=dataset.name,
        fields=tuple(dataset.fields),
        label_fields=None if dataset.label_fields is None else tuple(dataset.label_fields),
        hint=dataset.hint,
    )


def open_corpus(config: DictConfig) -> Corpus:
    """Prepare a data set as training does, unless that has been done before, and open it."""
    tokenizer = load_tokenizer(config.encoder.source)
    directory = prepare(
        raw_files(config.dataset),
        tokenizer.backend_tokenizer,
        tokenizer_name=tokenizer.name_or_path,
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.dataset.max_length,
        cache_dir=config.cache_dir,
    )
    return Corpus.open(directory)


def run(config: DictConfig) -> Corpus:
    """Prepare a data set and describe it on standard output."""
    corpus = open_corpus(config)
    rows = describe(corpus)
    width = max(len(name) for name, _ in rows)
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in rows)
    return corpus


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(run, "prepare")


if __name__ == "__main__":
    main()
