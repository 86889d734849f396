"""A table of made checkpoint files: how each is opened, or the sentence that refuses it."""

from __future__ import annotations

import argparse
import copy
import functools
import gzip
import io
import itertools
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from psvit_core.errors import CheckpointError
from psvit_core.zoo.cards import WEIGHTS, list_models
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.fitting import compare_models, load_tensors
from psvit_core.zoo.tensors import read_tensors
from tests.tiny import NAMES, build_tiny, tiny_model, vector

State = dict[str, Tensor]

NAME = "sdt_v1_digits"
ADVICE = ("weights_only", "safe_globals", "torch.load")


# ---- files that open -------------------------------------------------------------------------

PREFIXES = (
    (),
    ("module",),
    ("_orig_mod",),
    ("model",),
    ("net",),
    ("ema",),
    ("backbone",),
    ("network",),
    ("module", "_orig_mod"),
    ("_orig_mod", "module"),
    ("model", "module"),
    ("module", "model"),
    ("ema", "module"),
    ("module", "ema", "model"),
    ("net", "_orig_mod", "model"),
    ("_forward_module", "model"),
    ("spiking_net",),  # any other single attribute of a wrapper
    ("module", "spiking_net"),
)

WRAPPERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "net": lambda s: {"net": s, "acc": 0.9},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "module": lambda s: {"module": s, "dp_world_size": 8},
    "network": lambda s: {"network": s},
    "weights": lambda s: {"weights": s},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": s}}, "epoch": 3},
    "unknown name": lambda s: {"spikes": {"mine": s}},
    "list": lambda s: [s, {"lr": 0.1}],
    "with best accuracy": lambda s: {"state_dict": s, "best": torch.tensor(0.9)},
    "with a loss": lambda s: {"net": s, "criterion": {"weight": torch.ones(10)}},
    "twice the same": lambda s: {"state_dict": s, "model": copy.deepcopy(s)},
}

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

EXTRAS: dict[str, tuple[Callable[[State], State], str]] = {
    "nothing": (lambda s: s, ""),
    "no counters": (
        lambda s: {k: t for k, t in s.items() if "num_batches" not in k},
        "num_batches_tracked missing in the file, set to 0",
    ),
    "float counters": (
        lambda s: {k: t.float() if "num_batches" in k else t for k, t in s.items()},
        "",
    ),
    "neuron states": (
        lambda s: {**s, "block.0.attn.q_lif.v": torch.ones(2, 3), "head_lif.v": torch.ones(2)},
        "2 tensors dropped: states of SpikingJelly's neurons",
    ),
    "thop": (
        lambda s: {**s, "total_ops": torch.ones(1), "head.total_params": torch.ones(1)},
        "2 tensors dropped: counts of the profiler thop",
    ),
    "averaged": (
        lambda s: {**s, "n_averaged": torch.tensor(5)},
        "1 tensor dropped: counter of the averaged model",
    ),
    "no tensors": (lambda s: s, "ignored values that are not tensors: epoch, v"),
}


@dataclass(frozen=True)
class Made:
    """A file to make: what is done to a state dict before it is written."""

    family: str
    prefixes: tuple[str, ...] = ()
    wrapper: str = "bare"
    dtype: torch.dtype = torch.float32
    extra: str = "nothing"
    suffix: str = ".pth"

    @property
    def title(self) -> str:
        parts = (self.family, ".".join(self.prefixes), self.wrapper, str(self.dtype)[6:])
        return " ".join(filter(None, (*parts, self.extra, self.suffix)))

    def write(self, folder: Path) -> Path:
        state = EXTRAS[self.extra][0](dict(vector(self.family).weights))
        state = {
            k: t.to(self.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t
            for k, t in state.items()
        }
        for prefix in reversed(self.prefixes):
            state = {f"{prefix}.{key}": tensor for key, tensor in state.items()}
        if self.extra == "no tensors":
            state |= {"epoch": 3, "v": 0.0}  # type: ignore[dict-item]
        path = folder / f"made{self.suffix}"
        if self.wrapper == "bare" and self.suffix in (".safetensors", ".bin"):
            save_file({k: t.contiguous() for k, t in state.items()}, path)
        else:
            torch.save(WRAPPERS[self.wrapper](state), path)
        return path

    def notes(self) -> list[str]:
        """Return parts of the notes that must be given."""
        named = dict.fromkeys(self.prefixes)
        prefixes = ", ".join(f"{prefix}." for prefix in named)
        kind = str(self.dtype).removeprefix("torch.")
        return list(
            filter(
                None,
                (
                    f"prefix {prefixes} removed" if prefixes else "",
                    EXTRAS[self.extra][1],
                    f"converted from {kind} to float32" if self.dtype != torch.float32 else "",
                ),
            )
        )


def opened() -> list[Made]:
    """Return the table of files that open: each property alone, and all of them mixed."""
    first = "sdt_v1"
    rows = [Made(first, prefixes) for prefixes in PREFIXES]
    rows += [Made(first, prefixes, suffix=".safetensors") for prefixes in PREFIXES]
    rows += [Made(first, wrapper=wrapper) for wrapper in WRAPPERS]
    rows += [Made(first, extra=extra) for extra in EXTRAS]
    rows += [Made(first, dtype=dtype, suffix=s) for dtype in DTYPES for s in (".pt", ".bin")]
    mixed = zip(
        itertools.cycle(PREFIXES),
        itertools.cycle(WRAPPERS),
        itertools.cycle(DTYPES),
        itertools.cycle([e for e in EXTRAS if e != "averaged"]),
        [name for name in NAMES for _ in range(3)],
    )
    rows += [Made(n, p, w, d, e, ".pth.tar") for p, w, d, e, n in mixed]
    return rows


@pytest.mark.parametrize("made", opened(), ids=lambda made: made.title)
def test_files_open(made: Made, tmp_path: Path) -> None:
    read = read_tensors(made.write(tmp_path))
    expected = vector(made.family).weights
    assert read.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        if not tensor.is_floating_point():
            assert read.tensors[name].dtype == tensor.dtype
            tensor = torch.zeros_like(tensor) if made.extra == "no counters" else tensor
            if made.extra == "float counters":  # large counts are rounded in the file
                tensor = tensor.to(made.dtype).to(tensor.dtype)
        else:
            tensor = tensor.to(made.dtype)
        assert torch.equal(read.tensors[name], tensor)
    text = "\n".join(read.notes)
    assert all(note in text for note in made.notes()), text
    assert bool(read.notes) == bool(made.notes() or made.wrapper == "twice the same"), text


def test_the_table_is_long() -> None:
    assert len({made.title for made in opened()}) + len(refused()) >= 120


@pytest.mark.parametrize("name", NAMES)
def test_read_tensors_load_strictly(name: str, tmp_path: Path) -> None:
    made = Made(name, ("module", "model"), "nested", torch.float16, "no counters")
    read = read_tensors(made.write(tmp_path))
    model = build_tiny(name).to("meta")
    load_tensors(model, read.tensors, tmp_path)
    weights = vector(name).weights
    assert all(
        torch.equal(t, weights[k].half().float())
        for k, t in model.state_dict().items()
        if t.is_floating_point()
    )


@pytest.mark.parametrize("name", list_models(shipped=True))
def test_registered_models_keep_notes(name: str, tmp_path: Path) -> None:
    plain = load_model(name)
    assert plain.notes == ()
    state = {f"module.{k}": t for k, t in plain.state_dict().items()}
    torch.save({"net": state}, tmp_path / "renamed.safetensors")  # a torch file by content
    loaded = load_model(name, tmp_path / "renamed.safetensors")
    assert loaded.notes == ("prefix module. removed",)
    assert weights_hash(loaded) == weights_hash(plain)


def test_renamed_files_open_by_content(tmp_path: Path) -> None:
    source = WEIGHTS / f"{NAME}.safetensors"
    for name in ("w.pth", "w.PT", "w", "w.safetensors.txt"):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert weights_hash(load_model(NAME, tmp_path / name)) == weights_hash(load_model(NAME))


def test_old_format_of_torch_opens(tmp_path: Path) -> None:
    state = vector("sdt_v1").weights
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.pth").tensors.keys() == state.keys()


def test_names_inserted_by_compilers(tmp_path: Path) -> None:
    state = vector("sdt_v1").weights
    inside = {k.replace("attn.", "_orig_mod.attn."): t for k, t in state.items()}
    torch.save(inside, tmp_path / "inside.pth")
    read = read_tensors(tmp_path / "inside.pth")
    assert read.tensors.keys() == state.keys()
    assert read.notes == ("prefix _orig_mod. removed",)


# ---- several state dicts ---------------------------------------------------------------------


def several(state: State) -> dict[str, Any]:
    other = {key: tensor + 1 for key, tensor in state.items()}
    return {
        "two": {"model": state, "net": other},
        "average": {"model": state, "ema": other},
        "prefixes": {**prefix("model", state), **prefix("ema.module", other)},
        "bare and average": {**state, **prefix("ema", other)},
        "only average": {"ema": {"module": state}},
        "average by prefix": prefix("model.ema", other),
        "teacher": {"state_dict": {**prefix("student", state), **prefix("teacher", other)}},
    }


def prefix(text: str, state: Mapping[str, Tensor]) -> State:
    return {f"{text}.{key}": tensor for key, tensor in state.items()}


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file with each kind of several state dicts."""
    folder = tmp_path_factory.mktemp("several")
    for kind, content in several(dict(vector("sdt_v1").weights)).items():
        torch.save(content, folder / f"{kind}.pth")
    return folder


@pytest.mark.parametrize(
    ("kind", "options", "added", "note"),
    [
        ("two", {"entry": "model"}, 0, "entry model was chosen"),
        ("two", {"entry": "net"}, 1, "entry net was chosen"),
        ("average", {}, 0, "entry model was loaded; the file also contains ema"),
        ("average", {"ema": True}, 1, "entry ema was loaded"),
        ("prefixes", {}, 0, "also contains ema"),
        ("prefixes", {"ema": True}, 1, "prefix module. removed"),
        ("prefixes", {"entry": "ema"}, 1, "entry ema was chosen"),
        ("bare and average", {}, 0, "entry top level was loaded"),
        ("bare and average", {"ema": True}, 1, "entry ema was loaded"),
        ("only average", {"ema": True}, 0, ""),
        ("average by prefix", {"ema": True}, 1, "prefix model., ema. removed"),
        ("average by prefix", {}, 1, "prefix model., ema. removed"),
        ("teacher", {"entry": "state_dict.teacher"}, 1, "was chosen from state_dict.student"),
    ],
)
def test_one_of_several_is_chosen(
    choices: Path, kind: str, options: dict[str, Any], added: int, note: str
) -> None:
    read = read_tensors(choices / f"{kind}.pth", **options)
    weights = vector("sdt_v1").weights
    assert read.tensors.keys() == weights.keys()
    assert all(torch.equal(t, weights[k] + added) for k, t in read.tensors.items())
    assert note in "\n".join(read.notes)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("two", {}, r"several state dicts: model \(\d+ tensors\), net .* with --entry"),
        ("two", {"ema": True}, r"no moving average, only model .*, net .*\. Omit --ema"),
        ("two", {"entry": "weights"}, r"has no entries 'weights'\. It contains model .*, net "),
        ("two", {"entry": "net", "ema": True}, r"--ema and --entry net both choose.* Omit one"),
        ("only average", {}, r"only a moving average \(ema.module .*Load it with --ema"),
        ("teacher", {}, r"several state dicts: state_dict.student .*, state_dict.teacher "),
    ],
)
def test_several_are_listed(
    choices: Path, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tensors(choices / f"{kind}.pth", **options)


# ---- files that are refused ------------------------------------------------------------------


class Harm:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def zipped(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*names: str, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return buffer.getvalue()


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def numpy_bytes(save_to: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save_to(buffer, np.ones(3))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 12345\n"
TAR_ADVICE = "Save the state dict of the model alone"


@functools.cache
def refused() -> dict[str, tuple[bytes, str]]:
    """Return the files that are refused: name -> (content, message)."""
    state = {k: t for k, t in list(vector("sdt_v1").weights.items())[:4]}
    new, old = torch_bytes(state), torch_bytes(state, _use_new_zipfile_serialization=False)
    noise = random.Random(1).randbytes(3000)
    return {
        "empty": (b"", r"is empty \(0 bytes\).* download it again"),
        "zeros": (bytes(5000), "is filled with zeros.* download it again"),
        "HTML": (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "is an HTML page.*browser"),
        "HTML with BOM": ("\ufeff \n<HTML lang=en>".encode(), "is an HTML page"),
        "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file"),
        "LFS": (LFS, "is a Git LFS pointer.*git lfs pull"),
        "annex": (b"/annex/objects/SHA256E-s100--00ff.pth\n", "is a git-annex pointer.*git annex"),
        "JSON": (json.dumps({"weight_map": {}}).encode(), "is a JSON file.*contains the tensors"),
        "long JSON": (json.dumps(list(range(9000))).encode(), "is a JSON file"),
        "text": (b"hello\nworld", r'is a text file \(it starts with "hello"\)'),
        "quota": ("Téléchargement refusé".encode(), "is a text file"),
        "UTF-16": ("hello".encode("utf-16"), "is a text file"),
        "gzip": (gzip.compress(new), "is a gzip archive.*Unpack it"),
        "bzip2": (b"BZh91AY" + noise, "is a bzip2 archive.*Unpack it"),
        "xz": (b"\xfd7zXZ\x00" + noise, "is an xz archive.*Unpack it"),
        "zstd": (b"\x28\xb5\x2f\xfd" + noise, "is a zstd archive.*Unpack it"),
        "7z": (b"7z\xbc\xaf\x27\x1c" + noise, "is a 7z archive.*Unpack it"),
        "zip": (zipped(("a.pth", new), ("b.txt", b"")), r"zip archive of a\.pth, b\.txt.*Unpack"),
        "empty zip": (b"PK\x05\x06" + bytes(18), "no known format"),
        "tar": (tarred("run/a.pth", "run/log"), "tar archive of run/a.pth, run/log.*Unpack it"),
        "npz": (numpy_bytes(np.savez), "is a NumPy archive.*Save the state dict"),
        "npy": (numpy_bytes(np.save), "is a NumPy array.*Save the state dict"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + noise, "is an HDF5 file.*Save the state dict"),
        "GGUF": (b"GGUF" + noise, "is a GGUF file"),
        "PNG": (b"\x89PNG\r\n\x1a\n" + noise, "is a PNG image"),
        "PDF": (b"%PDF-1.7" + noise, "is a PDF document"),
        "ONNX": (b"\x08\x07\x12\x07pytorch" + noise, "is an ONNX file"),
        "noise": (b"\x91" + noise, "is of no known format.*bytes 91.* download it again"),
        "pickle": (pickle.dumps({"a": 1}), "is a Python pickle not written by torch.save"),
        "tar of torch 0.1": (
            tarred("sys_info", "pickle", "tensors", "storages"),
            f"tar format of PyTorch before version 0.1.10.*{TAR_ADVICE}",
        ),
        "old tar of torch 0.1": (
            tarred("sys_info", "pickle", "tensors", "storages", kind=tarfile.USTAR_FORMAT).replace(
                b"ustar", b"\0\0\0\0\0"
            ),
            "no known format|tar format of PyTorch",
        ),
        "TorchScript": (
            zipped(("m/data.pkl", b""), ("m/constants.pkl", b""), ("m/code/a.py", b"")),
            r"is a TorchScript archive.*torch.jit.load\(FILE\).state_dict",
        ),
        "torch.package": (
            zipped(("m/.data/extern_modules", b""), ("m/m.pkl", b"")),
            f"archive of torch.package.*{TAR_ADVICE}",
        ),
        "torch.export": (
            zipped(
                ("m/archive_format", b"pt2"),
            ),
            "archive of torch.export",
        ),
        "cut": (new[: len(new) // 2], "truncated or damaged zip archive.* download it again"),
        "cut, old format": (old[: len(old) // 2], "not a complete PyTorch checkpoint"),
        "protocol 4": (torch_bytes(state, pickle_protocol=4), "pickle protocol above 2"),
        "code": (torch_bytes({"state_dict": state, "x": Harm()}), "posix.system.*would run code"),
        "code, old format": (
            torch_bytes({"x": Harm()}, _use_new_zipfile_serialization=False),
            "posix.system.*would run code",
        ),
        "module": (torch_bytes(torch.nn.Linear(2, 2)), "torch.nn.modules.*would run code"),
        "no tensors": (torch_bytes({"epoch": 3}), r"no state dict.*it contains epoch \(int\)"),
        "nothing": (torch_bytes(None), "no state dict.*it contains a NoneType"),
        "empty dict": (torch_bytes({}), "no state dict.*an empty dict"),
        "one tensor": (torch_bytes(torch.ones(3)), "no state dict.*it contains a Tensor"),
        "optimizer": (
            torch_bytes({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}),
            r"no state dict.*optimizer \(dict\)",
        ),
        "sparse": (
            torch_bytes({**load_file(WEIGHTS / f"{NAME}.safetensors"), **sparse("head.bias")}),
            "head.bias has the layout torch.sparse_coo",
        ),
        "meta": (
            torch_bytes({k: t.to("meta") for k, t in load_model(NAME).state_dict().items()}),
            "has no values",
        ),
        "empty safetensors": (save({}), "no state dict"),
    }


def sparse(name: str) -> State:
    return {name: torch.eye(10)[0].to_sparse()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", list(refused()))
def test_files_are_refused(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = refused()[name]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(NAME, path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", ")"))
    assert not any(word in text for word in ADVICE)
    assert ("run code" in text) == (name.startswith(("code", "module", "pickle")))
    assert not (tmp_path / "harmed").exists()


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    state = dict(list(vector("sdt_v1").weights.items())[:6])
    sources = [torch_bytes(state), torch_bytes(state, _use_new_zipfile_serialization=False)]
    sources += [save(state), torch_bytes({"net": state, "args": argparse.Namespace(a=1)})]
    for seed in range(60):
        chance, content = random.Random(seed), bytearray(sources[seed % len(sources)])
        for _ in range(chance.choice((1, 10, 100))):
            content[chance.randrange(min(len(content), 3000))] = chance.randrange(256)
        path = tmp_path / f"{seed}.pth"
        path.write_bytes(content)
        try:
            read_tensors(path)
        except CheckpointError as error:
            assert not any(word in str(error) for word in ADVICE)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder\. Give the checkpoint file inside"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no model or file"):
        read_tensors(tmp_path / "none.pth")


# ---- the nearest model -----------------------------------------------------------------------


def test_the_nearest_model_shares_most_tensors() -> None:
    """A small file of another family has fewer missing tensors, but fits nothing."""
    state = dict(load_model(NAME).state_dict())
    part = {k: t for k, t in state.items() if k.startswith(("patch_embed", "block.0"))}
    fits = compare_models({**part, **prefix("decoder", state)})
    assert fits[0].model == NAME
    assert fits[0].n_matching == len(part)
    assert [f.n_matching for f in fits] == sorted((f.n_matching for f in fits), reverse=True)
    assert fits[0].n_faults > min(f.n_faults for f in fits)


def test_the_nearest_model_of_another_size_is_its_family(tmp_path: Path) -> None:
    state = dict(tiny_model("spikformer_cifar").state_dict())
    del state["block.1.mlp.fc1_bn.bias"]
    torch.save(state, tmp_path / "x.pth")
    nearest = "The nearest is Spikformer, CIFAR of the size in the file"
    with pytest.raises(CheckpointError, match=nearest):
        load_model(tmp_path / "x.pth")
    torch.save({"conv1.weight": torch.ones(3, 3)}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors \(conv1\.weight\) matches"):
        load_model(tmp_path / "y.pth")
