"""`python -m prime_xmc.export`: a model for programs without this package."""

import importlib.util
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import run_app

MODULES = ("onnx", "onnxruntime", "onnxscript", "pyarrow")


def run(config: DictConfig) -> dict[str, float]:
    """Export the model, say how far it agrees, and measure it on the test split if that is asked for.

    Returns:
        Largest difference of an embedding's number ("difference"), and `<encoder>/<metric>` where it is measured.

    Raises:
        FileNotFoundError: If model, classifiers or raw files are missing.
        ValueError: If the format is unknown, a library is missing, the encoder cannot be exported, or what is exported
            differs from the model.
    """
    if config.format != "onnx":
        raise ValueError(f"expected format=onnx, the one that there is, got {config.format}")
    if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: pip install '.[onnx]' in the clone")
    # here, because the help need not wait for torch
    import torch

    from prime_xmc.assemble import model_corpus
    from prime_xmc.data.propensity import inverse_propensity
    from prime_xmc.evaluation.table import print_notes, print_table
    from prime_xmc.export.predictor import Predictor
    from prime_xmc.interchange.comparison import TokenEncoder, compare, describe
    from prime_xmc.interchange.folder_writer import ENCODER, ENCODER_INT8, check_output, export_folder
    from prime_xmc.interchange.onnx_encoder import OnnxEncoder
    from prime_xmc.printing import unfailing_output

    model, output = Path(config.model.dir).expanduser(), Path(config.output).expanduser()
    check_output(output)
    predictor = Predictor.load(model, scorer="theta", index="exact", precision="32-true")
    corpus = model_corpus(config, predictor) if config.test else None  # first, since it may be another data set
    exported = export_folder(predictor, model, output, vectors=config.vectors, int8=config.int8)
    results = {"difference": exported.difference}
    notes = [f"{exported.folder}: difference from torch {exported.difference:.1e}, at most 1e-4 is allowed"]
    with unfailing_output():
        if corpus is not None:
            encoders: dict[str, TokenEncoder] = {"torch, float32": predictor}
            own = Predictor.load(model, scorer="theta", index="exact")
            if own.precision != "32-true":
                encoders[f"torch, {own.precision}"] = own
            threads = torch.get_num_threads()
            encoders["onnxruntime, float32"] = OnnxEncoder(output / ENCODER, threads)
            if config.int8:
                encoders["onnxruntime, int8"] = OnnxEncoder(output / ENCODER_INT8, threads)
            constants = config.dataset.propensity
            weights = inverse_propensity(corpus.label_frequency, len(corpus.train), constants.a, constants.b)
            found = compare(encoders, corpus.test, exported.vectors, weights)
            print_table({name: each.metrics for name, each in found.items()})
            results |= {f"{name}/{key}": value for name, each in found.items() for key, value in each.metrics.items()}
            notes += describe(found)
        print_notes(notes)
    return results


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.export.__main__:run", "export")


if __name__ == "__main__":
    main()
