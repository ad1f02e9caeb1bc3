"""Gives the commands folders and files that a stranger has tampered with: nothing of them may run.

Each ends in one line of a documented error, or, where what was tampered with is not looked at, in an answer as before.
Payloads would leave a marker. Model folders, checkpoints, run folders that are run again, run folders in reports, and
raw files and queries with control characters and nested brackets.
"""

import gzip
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import toys
from fault_kills import begin, training
from findings import Row, main
from forks import Ended, call, prepare_process, run
from hostile import (
    CHECKPOINTS,
    CONFIG,
    CONFIGURATIONS,
    ENCODERS,
    MODELS,
    REPORTS,
    SECRET,
    SECRET_VARIABLE,
    TENSORS,
    Case,
    make_encoder,
    make_tensors,
)

_MEMORY = 6 * 2**30  # bytes of address space of a reader: what would take more ends
_SECONDS = 60


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Try everything hostile."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    settings, place = training(folder), folder / "whole"
    whole = run("train", begin(settings, place), place)
    if whole.status != 0:
        yield Row("a run that is tampered with", lost=[f"it ends with {whole.status}: {whole.last_line}"])
        return
    original = place / "run"
    yield _read_cases("model folders of strangers", MODELS, original / "model", folder / "model", _open_model)
    yield _encoders(folder / "encoders")
    checkpoints = original / "checkpoints"
    yield _read_cases("checkpoints of strangers", CHECKPOINTS, checkpoints, folder / "checkpoints", _open_checkpoint)

    def run_again(copy: Path, work: Path) -> Iterator[Ended]:
        yield run("train", [f"--config-path={copy}/.hydra", "--config-name=config", f"hydra.run.dir={work}/a"], work)
        yield run("train", [f"--config-path={copy}", "--config-name=.hydra/config", f"hydra.run.dir={work}/b"], work)
        (copy / "metrics.json").unlink()  # or the run would count as finished
        yield run("train", [f"resume={copy}"], work)

    chosen = dict(list(CONFIGURATIONS.items())[::4]) if short else CONFIGURATIONS
    yield _command_cases("run folders of strangers, run again", chosen, original, folder / "again", run_again, 3)

    def report(copy: Path, work: Path) -> Iterator[Ended]:
        yield run("report", [f"runs={copy}", f"output={work}/page", "num_resamples=20"], work, environment=_token())

    chosen = dict(list(REPORTS.items())[::4]) if short else REPORTS
    yield _command_cases("run folders of strangers, in a report", chosen, original, folder / "report", report, 1)
    yield _texts(settings, folder, original, short)


def _token() -> dict[str, str]:
    return {SECRET_VARIABLE: SECRET}


def _read_cases(what: str, cases: Mapping[str, Case], original: Path, place: Path, read: Callable[[str], None]) -> Row:
    """Return the row of cases that are read in a fork of their own."""
    lost = []
    for name, case in cases.items():
        copy, marker = place / original.name, place / "marker"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, copy, symlinks=True)
        case.damage(copy, marker)
        if case.message is None and (copy / CONFIG).is_file():
            call(_seal, str(copy))
        try:
            problem = call(_told, read, str(copy), case.message, timeout=_SECONDS)
        except RuntimeError as error:
            problem = f"the reader ends: {str(error).strip().splitlines()[-1]}"
        if marker.exists():
            problem = "its payload has run"
        if problem:
            lost.append(f"{name}: {problem}")
    return Row(what, len(cases), len(cases), lost, "nothing has run, each was refused in one line or not looked at")


def _encoders(place: Path) -> Row:
    """Return the row of encoder folders and files of tensors."""
    lost = []
    for number, (file, content, message) in enumerate(ENCODERS):
        encoder = make_encoder(place / f"encoder-{number}", file, content)
        if problem := call(_told, _check_encoder, str(encoder), message):
            lost.append(f"{file} with {str(content)[:60]}: {problem}")
    for number, (header, length, message) in enumerate(TENSORS):
        path = make_tensors(place / f"tensors-{number}", header, length)
        if problem := call(_told, _check_tensors, str(path), message):
            lost.append(f"tensors with the header {header[:60]!r}: {problem}")
    number = len(ENCODERS) + len(TENSORS)
    return Row("encoders and tensors of strangers", number, number, lost)


def _check_encoder(path: str) -> None:
    from prime_xmc.foreign import check_encoder_files

    check_encoder_files(Path(path))


def _check_tensors(path: str) -> None:
    from prime_xmc.foreign import check_tensors_file

    check_tensors_file(Path(path))


def _seal(model: str) -> None:
    """Write the checksums of a model anew, as whoever changes its files can."""
    from prime_xmc.export.model_sums import seal

    seal(Path(model))


def _told(read: Callable[[str], None], path: str, message: str | None) -> str | None:
    """Return what is wrong with how a reader has ended, None where nothing is."""
    from prime_xmc.command_line.messages import user_message

    os.environ |= _token()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        read(path)
    except Exception as error:
        told = user_message(error)
        if told is None:
            return f"it ends in {type(error).__name__}: {str(error)[:100]}"
        if message is not None and not re.search(message, told):
            return f"the message is another one: {told[:160]!r}"
        if SECRET in told or "\x1b" in told or len(told.splitlines()) > 2:
            return f"the message is no line for people: {told[:160]!r}"
        return None
    return None if message is None else "it is taken"


def _open_model(path: str) -> None:
    from prime_xmc.export.predictor import Predictor

    Predictor.load(path, index="faiss").predict(["a picture of red cat"])


def _open_checkpoint(path: str) -> None:
    from prime_xmc.model.banks import RowBank
    from prime_xmc.training.checkpoints import ShardedCheckpointIO
    from prime_xmc.training.continuation import read_origin

    before = Path(path, "before-last.ckpt")
    if before.is_file():  # or a run would go on from it
        before.unlink()
    read_origin(Path(path, "last.ckpt"))
    for bank in ShardedCheckpointIO().load_checkpoint(Path(path, "last.ckpt"))["banks"].values():
        RowBank(1, 32).load(Path(bank))


def _command_cases(
    what: str,
    cases: Mapping[str, Case],
    original: Path,
    place: Path,
    commands: Callable[[Path, Path], Iterator[Ended]],
    times: int,
) -> Row:
    """Return the row of cases that are given to a command."""
    lost = []
    for name, case in cases.items():
        copy, work, marker = place / "copy", place / "work", place / "marker"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, copy)
        work.mkdir()
        case.damage(copy, marker)
        for number, ended in enumerate(commands(copy, work)):
            if problem := _problem(ended, case, work, place):
                lost.append(f"{name}, command {number}: {problem}")
        if marker.exists():
            lost.append(f"{name}: its payload has run")
    return Row(what, len(cases) * times, len(cases) * times, lost, f"{len(cases)} folders, {times} commands each")


def _problem(ended: Ended, case: Case, work: Path, place: Path) -> str | None:
    """Return what is wrong with how a command has ended, None where nothing is."""
    if ended.status is None:
        return "it does not end"
    if ended.status < 0 or ended.traceback:
        return f"it ends with {ended.status}: {ended.last_line[:160]}"
    if case.message is not None and (ended.status == 0 or not re.search(case.message, ended.output)):
        return f"exit {ended.status}: {ended.last_line[:160]!r}"
    pages = [path for path in work.rglob("*") if path.is_file()]
    if any(SECRET.encode() in path.read_bytes() for path in pages):
        return "the reader's environment is in the output"
    if any(b"<img src=x" in path.read_bytes() for path in pages if path.suffix in (".html", ".md")):
        return "there is HTML of the run in the page"
    outside = [path.name for path in place.iterdir() if path.name not in ("copy", "work", "marker")]
    return f"written outside of the output: {outside}" if outside else None


def _texts(settings: list[str], folder: Path, original: Path, short: bool) -> Row:
    """Return the row of raw files and queries that no terminal and no reader should have to bear."""
    lost: list[str] = []
    cases: dict[str, str] = {
        "nested brackets": "[" * 2000,
        "nested objects": '{"a":' * 2000,
        "half a character": r'{"uid": "\ud800", "title": "a \udfff", "target_ind": [0]}',
        "a number of no end": '{"uid": "a", "title": "t", "target_ind": [1e999]}',
        "a label that there is not": '{"uid": "a", "title": "t", "target_ind": [10000000000000000000000]}',
        "escapes": '{"uid": "\\u001b[31ma", "title": "\\u001b[2J", "target_ind": [0]}',
    }
    for name, line in list(cases.items())[: 2 if short else None]:
        place = folder / "texts"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "data", place / "data")
        path = place / "data" / "trn.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write("\n".join([*lines[:6], line, *lines[7:]]) + "\n")
        ended = run("train", [*begin(settings, place), f"dataset.dir={place}/data"], place)
        refused = ended.status == 1 and "line 7" in ended.output
        harmless = ended.status == 0 and name == "escapes"
        if not (refused or harmless) or ended.traceback or "\x1b" in ended.output:
            lost.append(f"raw files with {name}: exit {ended.status}: {ended.last_line[:160]!r}")
        queries = place / "q.jsonl"
        queries.write_text('{"query": "a picture of red cat"}\n' + line + "\n", encoding="utf-8")
        arguments = [f"model={original}/model", f"input={queries}", f"output={place}/o.jsonl"]
        ended = run("predict", arguments, place)
        if ended.status not in (0, 1) or ended.traceback or "\x1b" in ended.output:
            lost.append(f"queries with {name}: exit {ended.status}: {ended.last_line[:160]!r}")
    tried = 2 * (2 if short else len(cases))
    labels = folder / "texts" / "data" / "lbl.json.gz"
    place = folder / "escapes"
    shutil.copytree(folder / "data", place / "data")
    labels = place / "data" / "lbl.json.gz"
    with gzip.open(labels, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for record in records:
        record |= {"uid": f"\x1b[31m{record['uid']}\u202e", "title": f"\x1b]0;owned\x07{record['title']}"}
    with gzip.open(labels, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    ended = run("train", [*begin(settings, place), f"dataset.dir={place}/data"], place)
    if ended.status != 0 or "\x1b" in ended.output:
        lost.append(f"labels with escapes: exit {ended.status}, an escape printed: {chr(27) in ended.output}")
    arguments = [f"runs={place}/run", f"output={place}/page", f"cache_dir={place}/cache", "num_resamples=20"]
    ended = run("report", arguments, place)
    if ended.status != 0 or "\x1b" in ended.output:
        lost.append(f"a report of labels with escapes: exit {ended.status}: {ended.last_line[:160]!r}")
    return Row("raw files and queries of strangers", tried + 2, tried + 2, lost)


if __name__ == "__main__":
    main(__doc__, rows)
