"""Folders and files that a stranger has tampered with, each with what has to come of it.

tests/export/test_hostile_folder.py tries the models by the library, fault_hostile.py all of them by the commands too.
Payloads would leave a marker if they ran.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = "prime_config.json"
SECRET = "hunter2-of-the-reader"  # value of an environment variable that no output may have
SECRET_VARIABLE = "PRIME_XMC_FAULTS_TOKEN"


class Case(NamedTuple):
    """Something hostile.

    Attributes:
        damage: Tampers with a copy of a folder; the second argument is the marker of payloads.
        message: Expression that the message has to match; None: it may also answer, as long as nothing runs.
    """

    damage: Callable[[Path, Path], object]
    message: str | None


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (command(self.marker),)


def command(marker: Path) -> str:
    """Return the command of a payload."""
    return f"touch {marker}"


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path, Path], None]:
    """Return what changes a JSON file of a folder."""

    def damage(folder: Path, marker: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def write(name: str, content: str | bytes) -> Callable[[Path, Path], None]:
    """Return what writes a file of a folder."""

    def damage(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def tensors(name: str, change: Callable[[dict], dict]) -> Callable[[Path, Path], None]:
    """Return what changes a file of tensors."""

    def damage(folder: Path, marker: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = change(load_file(folder / name))
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name, {"format": "pt"})

    return damage


def prototypes(change: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    """Return what changes the prototypes of a model."""
    return tensors("prototypes.safetensors", lambda content: content | {"prototypes": change(content["prototypes"])})


def with_header(content: bytes, length: int | None = None) -> bytes:
    """Return a file of tensors with this header alone, and the length that it gives for it."""
    return struct.pack("<Q", len(content) if length is None else length) + content


def _link(name: str) -> Callable[[Path, Path], None]:
    def damage(folder: Path, marker: Path) -> None:
        (folder / name).rename(folder.parent / f"own-{name}")
        (folder / name).symlink_to(folder.parent / f"own-{name}")

    return damage


def _pickled_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def _pickle_beside(folder: Path, marker: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def _code_beside(file: str, key: str, value: object) -> Callable[[Path, Path], None]:
    def damage(folder: Path, marker: Path) -> None:
        (folder / "evil.py").write_text(f"import os\nos.system({command(marker)!r})\nclass Config: pass\n")
        edit(file, lambda content: content.update({key: value}))(folder, marker)

    return damage


def _index_on_disk(folder: Path, marker: Path) -> None:
    """An index whose lists lie in a file that it names, which Faiss opens for writing."""
    import faiss
    import numpy as np

    vectors = np.random.default_rng(0).normal(size=(30, 32)).astype("f4")
    quantizer = faiss.IndexFlatIP(32)
    quantizer.add(vectors[:1])
    index = faiss.IndexIVFFlat(quantizer, 32, 1, faiss.METRIC_INNER_PRODUCT)
    index.own_fields, index.is_trained = False, True
    lists = faiss.OnDiskInvertedLists(1, index.code_size, str(folder.parent / "lists.data"))
    index.replace_invlists(lists, False)
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))


def _wrong_kind_of_index(folder: Path, marker: Path) -> None:
    path = folder / "index.faiss"
    path.write_bytes(b"IwFl" + path.read_bytes()[4:])


MODELS: Mapping[str, Case] = {
    "a kernel of the hub": Case(edit(CONFIG, lambda c: c["encoder"].update(attention="stranger/kernel")), "attention"),
    "a kernel in config.json": Case(
        edit("config.json", lambda c: c.update(_attn_implementation="stranger/kernel")), "code that would be downloaded"
    ),
    "weights drawn at random": Case(edit(CONFIG, lambda c: c["encoder"].update(pretrained=False)), "pretrained"),
    "another source": Case(edit(CONFIG, lambda c: c["encoder"].update(source="/")), "source"),
    "max_length -1": Case(edit(CONFIG, lambda c: c.update(max_length=-1)), "max_length is -1"),
    "max_length true": Case(edit(CONFIG, lambda c: c.update(max_length=True)), "max_length is True"),
    "max_length 2**40": Case(edit(CONFIG, lambda c: c.update(max_length=2**40)), "max_length is 1099511627776"),
    "no prototypes": Case(edit(CONFIG, lambda c: c.update(prototypes=None)), "objects"),
    "an index of lists": Case(edit(CONFIG, lambda c: c["index"].update(kind="ivf")), "index is"),
    "missing weights": Case(
        tensors("model.safetensors", lambda c: {n: t for n, t in c.items() if "layer.1." not in n}),
        "weights that its config.json asks for are missing",
    ),
    "weights of another size": Case(edit("config.json", lambda c: c.update(hidden_size=64)), "encoder is damaged"),
    "unknown architecture": Case(edit("config.json", lambda c: c.update(model_type="strange")), "encoder is damaged"),
    "code beside it": Case(
        edit("config.json", lambda c: c.update(model_type="x", auto_map={"AutoConfig": "evil.Config"})),
        "encoder is damaged",
    ),
    "an adapter": Case(write("adapter_config.json", "{}"), "adapter_config.json"),
    "a link to another file": Case(_link("labels.jsonl"), "labels.jsonl is a link to"),
    "prototypes of half the labels": Case(prototypes(lambda rows: rows[:10]), "10 x 32"),
    "prototypes of half the dimensions": Case(prototypes(lambda rows: rows[:, :16]), "48 x 16"),
    "whole numbers as prototypes": Case(prototypes(lambda rows: rows.long()), "I64"),
    "prototypes of NaN": Case(prototypes(lambda rows: rows * float("nan")), "not finite"),
    "half a character": Case(
        write(
            "labels.jsonl",
            "".join([r'{"uid": "\ud800", "text": "t"}' + "\n", *['{"uid": "a", "text": "t"}\n'] * 47]),
        ),
        "labels.jsonl, line 1",
    ),
    "nested labels": Case(write("labels.jsonl", "[" * 2000), "labels.jsonl, line 1"),
    "nested configuration": Case(write(CONFIG, "[" * 2000), "prime_config.json is damaged"),
    "no special tokens": Case(edit("tokenizer.json", lambda c: c.update(post_processor=None)), "special tokens"),
    "tokens without embeddings": Case(
        edit("tokenizer.json", lambda c: c["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6])),
        "tokenizer.json is damaged",
    ),
    "half a tokenizer": Case(
        lambda model, _: (model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes()[:700]),
        "tokenizer.json is damaged",
    ),
    "pickled weights": Case(_pickled_weights, "model.safetensors not found"),
    "pickled weights beside": Case(_pickle_beside, None),
    "code of the encoder": Case(_code_beside("config.json", "auto_map", {"AutoModel": "evil.Config"}), None),
    "code of the tokenizer": Case(
        _code_beside("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Config", None]}), None
    ),
    "a chat template with an expression": Case(
        edit(
            "tokenizer_config.json",
            lambda c: c.update(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ),
        None,
    ),
    "an index with lists in another file": Case(_index_on_disk, "index.faiss"),
    "an index of another kind": Case(_wrong_kind_of_index, "index.faiss"),
    "a bomb of shapes": Case(
        write(
            "prototypes.safetensors",
            with_header(
                b'{"prototypes":{"dtype":"F32","shape":[1000000000000,32],"data_offsets":[0,128000000000000]}}'
            ),
        ),
        r"prototypes\.safetensors",
    ),
    "a bomb of a header": Case(write("model.safetensors", with_header(b"{}", 2**40)), r"model\.safetensors"),
    "more layers than weights": Case(
        edit("config.json", lambda c: c.update(num_hidden_layers=10**6)), "more layers than"
    ),
    "more tokens than weights": Case(
        edit("config.json", lambda c: c.update(vocab_size=10**15)), "more than the weights"
    ),
    "quantised weights": Case(
        edit("config.json", lambda c: c.update(quantization_config={"quant_method": "mxfp4"})), "plain weights"
    ),
    "a tokenizer of another folder": Case(
        edit("tokenizer_config.json", lambda c: c.update(vocab_file="../own.txt")), None
    ),
    "weights of another folder": Case(
        write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "../own.safetensors"}})),
        "expected files beside it",
    ),
    "checksums of other files": Case(edit(CONFIG, lambda c: c["files"].update({"../own": {}})), "names the file"),
    "an expression in the settings": Case(
        edit(CONFIG, lambda c: c["settings"].update(dataset=f"${{oc.env:{SECRET_VARIABLE}}}")), None
    ),
}


# Files of an encoder folder beside weights of 3 x 2 numbers, with a file own.txt in the folder around it.
ENCODERS: Sequence[tuple[str, Any, str | None]] = (
    ("config.json", {"attn_implementation": "stranger/kernel"}, "code that would be downloaded"),
    ("config.json", {"text_config": {"_attn_implementation": "a/b:run"}}, "code that would be downloaded"),
    ("config.json", {"_experts_implementation": "a/b"}, "code that would be downloaded"),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "plain weights"),
    ("config.json", {"vocab_size": 10**15}, "more than the weights have bytes"),
    ("config.json", {"num_hidden_layers": 10**6}, "more layers than its 1 tensors"),
    ("tokenizer_config.json", {"vocab_file": "../own.txt"}, "a file in another folder"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../own.safetensors"}}, "expected files beside it"),
    ("config.json", [[]] * 2, None),
)
# Headers of files of tensors, the lengths that they give for them (None: their own), and messages.
TENSORS: Sequence[tuple[bytes, int | None, str]] = (
    (b"{}", 2**40, "says that its header has 1099511627776"),
    (b"[1]", None, "is not one of safetensors"),
    (b"[" * 5000, None, "is not one of safetensors"),
    (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', None, "more than its"),
    (b'{"a":{"dtype":"F32","shape":[0,1000000000000],"data_offsets":[0,0]}}', None, "longer than the file"),
    (b'{"a":{"dtype":"F32"}}', None, "is not one of safetensors"),
)


def make_encoder(folder: Path, file: str, content: Any) -> Path:
    """Write one of `ENCODERS`, and return its folder."""
    import torch
    from safetensors.torch import save_file

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    (folder / "own.txt").write_text("secret")
    save_file({"rows": torch.zeros(3, 2)}, encoder / "model.safetensors")
    (encoder / file).write_text(json.dumps(content))
    return encoder


def make_tensors(folder: Path, header: bytes, length: int | None) -> Path:
    """Write one of `TENSORS`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "a.safetensors"
    path.write_bytes(with_header(header, length))
    return path


def pickled(marker: Path) -> bytes:
    """Return a file of torch whose content runs a command when it is unpickled."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"loops": {}, "evil": Payload(marker)}))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def _bomb(size: int = 2**28) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"loops": {}}))
        archive.writestr("archive/data/0", bytes(size))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def _other_bank(place: Callable[[Path], str]) -> Callable[[Path, Path], None]:
    def damage(folder: Path, marker: Path) -> None:
        import torch

        path = folder / "last.ckpt"
        content = torch.load(path, weights_only=True)
        torch.save(content | {"banks": dict.fromkeys(content["banks"], place(folder))}, path)

    return damage


def _large_bank(folder: Path, marker: Path) -> None:
    for path in folder.glob("last-*.banks/*/index.json"):
        path.write_text(json.dumps({"num_rows": 10**12, "dim": 10**6, "num_shards": 10**9}))


def _linked_checkpoint(folder: Path, marker: Path) -> None:
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("/etc/passwd")


# Of the folder checkpoints/ of a run.
CHECKPOINTS: Mapping[str, Case] = {
    "a pickle": Case(lambda folder, marker: (folder / "last.ckpt").write_bytes(pickle.dumps(Payload(marker))), "last"),
    "a pickle in an archive": Case(lambda folder, marker: (folder / "last.ckpt").write_bytes(pickled(marker)), "last"),
    "an archive that is a bomb": Case(write("last.ckpt", _bomb(2**26)), r"last\.ckpt"),
    "a link to another file": Case(_linked_checkpoint, r"last\.ckpt"),
    "banks in another folder": Case(_other_bank(lambda _: "../../../etc"), "expected one beside it"),
    "banks at an absolute path": Case(_other_bank(lambda _: "/etc"), "expected one beside it"),
    "banks that are no folders": Case(_other_bank(lambda _: "last.ckpt"), r"last\.ckpt"),
    "banks larger than all disks": Case(_large_bank, r"holds 1000000000000 x 1000000 rows"),
    "nested brackets": Case(write("last.ckpt", "[" * 5000), r"last\.ckpt"),
}

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def _appended(text: str) -> Callable[[Path, Path], None]:
    """Return what adds lines to the configuration of a run, where MARKER is the command of a payload."""

    def damage(run: Path, marker: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        path.write_text(path.read_text(encoding="utf-8") + text.replace("MARKER", command(marker)), encoding="utf-8")

    return damage


def _target(target: str, key: str = "loss") -> Callable[[Path, Path], None]:
    """Return what makes a section of the configuration another call."""

    def damage(run: Path, marker: Path) -> None:
        import yaml

        path = run / ".hydra" / "config.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content[key] = {"_target_": target, "_args_": [command(marker)]}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    return damage


def _prefixed(text: str) -> Callable[[Path, Path], None]:
    def damage(run: Path, marker: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        path.write_text(text + path.read_text(encoding="utf-8"), encoding="utf-8")

    return damage


def _hydra_options(run: Path, marker: Path) -> None:
    (run / ".hydra" / "hydra" / "launcher").mkdir(parents=True)
    (run / ".hydra" / "hydra" / "launcher" / "basic.yaml").write_text(
        f"_target_: os.system\n_args_: [{command(marker)}]\n"
    )


# Of a run folder that is run again, by --config-path <run>/.hydra, by --config-path <run>, and by resume=<run>.
CONFIGURATIONS: Mapping[str, Case] = {
    **{
        f"a section is {target}": Case(_target(target), "no part of a training")
        for target in ("os.system", "subprocess.getoutput", "builtins.exec", "torch.hub.load", "numpy.load")
    },
    "the bank is os.system": Case(_target("os.system", "bank"), "no part of a training"),
    "a callback is os.system": Case(_target("os.system", "callbacks"), "no part of a training"),
    "a hidden setting of the second stage": Case(
        lambda run, _: _replace(
            run / ".hydra" / "config.yaml",
            "classify_settings:\n",
            "classify_settings:\n- loss._target_=os.system\n",
        ),
        "classify_settings",
    ),
    "keys of Hydra": Case(
        _appended("\nhydra:\n  launcher:\n    _target_: os.system\n    _args_: ['MARKER']\n"), "key hydra"
    ),
    "defaults of Hydra": Case(_prefixed("defaults:\n  - /hydra/launcher: evil\n"), "key defaults"),
    "a package of Hydra": Case(_prefixed("# @package hydra\n"), "has the line"),
    "options of Hydra": Case(_hydra_options, "options of Hydra"),
    "an object of Python": Case(_appended("\nx: !!python/object/apply:os.system ['MARKER']\n"), "YAML|tag|constructor"),
    "an expression that decodes": Case(
        _appended("\nevil: \"${oc.decode:'{_target_: os.system}'}\"\n"),
        "expression that can come to a target|no part of a training",
    ),
    "a key twice": Case(_appended("\nseed: 1\n"), "duplicate key seed"),
    "aliases that multiply": Case(_appended(f"\n{_LAUGHS}"), "alias"),
    "nested brackets": Case(_appended("\nx: " + "[" * 3000), "YAML"),
}

# Of a run folder in a report: the page has neither the reader's environment nor HTML, and nothing is written elsewhere.
REPORTS: Mapping[str, Case] = {
    **{
        f"an expression {text}": Case(_appended(f"\nstolen: '{text}'\n"), None)
        for text in (
            f"${{oc.env:{SECRET_VARIABLE}}}",
            f"${{ oc.env:{SECRET_VARIABLE}}}",
            f"${{oc.env :{SECRET_VARIABLE}}}",
            f"${{${{hidden}}:{SECRET_VARIABLE}}}",
        )
    },
    "a name with HTML": Case(
        lambda run, _: _replace(run / ".hydra" / "config.yaml", "name: custom", "name: '<img src=x onerror=alert(1)>'"),
        None,
    ),
    "a data set called ..": Case(
        lambda run, _: _replace(run / ".hydra" / "config.yaml", "name: custom", "name: '..'"), None
    ),
    "a data set with a path": Case(
        lambda run, _: _replace(run / ".hydra" / "config.yaml", "name: custom", "name: '../../outside'"), None
    ),
    "aliases that multiply": Case(_appended(f"\n{_LAUGHS}"), "alias"),
    "nested metrics": Case(write("metrics.json", "[" * 5000), "metrics.json"),
    "pickled predictions": Case(lambda run, marker: _pickled_predictions(run / "predictions.npz", marker), None),
    "an object of Python": Case(_appended("\nx: !!python/object/apply:os.system ['MARKER']\n"), "YAML"),
}


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise AssertionError(f"{path} has no {old!r}")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _pickled_predictions(path: Path, marker: Path) -> None:
    import numpy as np

    np.savez(path, indices=np.array([Payload(marker)], dtype=object), scores=np.ones(1))
