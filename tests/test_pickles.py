"""Reading torch pickles: exactly what torch.save wrote, and nothing that is run."""

from __future__ import annotations

import copyreg
import math
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_latent_upscale import WeightsError
from lib_latent_upscale.weights import pickles, reading
from lib_latent_upscale.weights.pickles import LazyTensor, PickleFile, open_pickle

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
REUSING_THE_FOLDER = settings(
    deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# What torch.save writes is read exactly


def content(path: Path) -> Any:
    """All of a file, with its tensors read."""
    with open_pickle(path) as file:
        return read_all(file, file.content)


def read_all(file: PickleFile, value: Any) -> Any:
    if isinstance(value, LazyTensor):
        return file.tensor(value)
    if isinstance(value, dict):
        return {key: read_all(file, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(read_all(file, inner) for inner in value)
    return value


def assert_same(ours: Any, torchs: Any) -> None:
    if isinstance(torchs, Tensor):
        assert isinstance(ours, Tensor)
        assert (ours.dtype, ours.shape) == (torchs.dtype, torchs.shape)
        assert torch.equal(ours, torchs)
    elif isinstance(torchs, dict):
        assert list(ours) == list(torchs)
        assert [type(key) for key in ours] == [type(key) for key in torchs]
        for key in torchs:
            assert_same(ours[key], torchs[key])
    elif isinstance(torchs, (list, tuple)):
        assert type(ours) is type(torchs)
        assert len(ours) == len(torchs)
        for one, other in zip(ours, torchs):
            assert_same(one, other)
    else:
        assert (type(ours), ours) == (type(torchs), torchs)


def assert_read_as_torch_does(path: Path, value: Any, protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=protocol)
    # torch's own careful reader knows protocol 2 only.
    assert_same(content(path), torch.load(path, weights_only=protocol == 2))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    tensor = torch.tensor([[0, 1, 2], [3, 100, 0]]).to(dtype)
    assert_read_as_torch_does(tmp_path / "a.pth", {"a": tensor}, protocol)


BASE = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE.t(),
        BASE[1:3, ::2],
        BASE[2],
        BASE[3, 5],
        BASE[2:2],
        torch.empty(0, 7),
        torch.tensor(3.0),
        torch.tensor([math.nan, math.inf, -0.0]).nan_to_num(nan=7.0),
        BASE.to(memory_format=torch.contiguous_format).unflatten(0, (2, 2)).permute(2, 0, 1),
        nn.Parameter(BASE),
        nn.Parameter(BASE[:, 1], requires_grad=False),
    ],
    ids=lambda tensor: f"{type(tensor).__name__}{tuple(tensor.shape)}",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_views_scalars_parameters_and_empty_tensors(
    tmp_path: Path, tensor: Tensor, protocol: int
) -> None:
    assert_read_as_torch_does(tmp_path / "a.pth", {"a": tensor, "again": tensor}, protocol)


def test_views_of_one_storage_share_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"rows": BASE[:2], "columns": BASE[:, 3:], "all": BASE}, path)
    tensors = reading.read(path).tensors
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1
    assert torch.equal(tensors["columns"], BASE[:, 3:])


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_modules_state_dict_with_its_version_numbers(tmp_path: Path, protocol: int) -> None:
    state = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).state_dict()
    assert state._metadata
    assert_read_as_torch_does(tmp_path / "a.pth", state, protocol)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict"])
def test_a_checkpoint_of_a_trainer(tmp_path: Path, wrapper: str, protocol: int) -> None:
    path, layer = tmp_path / "a.pth", nn.Linear(3, 2)
    beside = {
        "iter": 250_000,
        "seed": -(2**70),
        "loss": 0.25,
        "best": None,
        "amp": True,
        "sizes": [64, (2, 3), [], {}],
        "name": "Ω\nx" * 100,
        7: "an integer as a key",
        "type": torch.float32,
    }
    torch.save({**beside, wrapper: layer.state_dict()}, path, pickle_protocol=protocol)
    read = reading.read(path).tensors
    assert read.keys() == {"weight", "bias"}
    assert torch.equal(read["weight"], layer.weight)


def test_the_better_of_two_sets_of_weights_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"params": {"a": torch.zeros(1)}, "params_ema": {"a": torch.ones(1)}}, path)
    assert reading.read(path).tensors["a"] == 1


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(draw(st.sampled_from(DTYPES)))
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    if tensor.dim() and len(tensor) > 1 and draw(st.booleans()):
        tensor = tensor[1:]
    return tensor


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**500), 2**500)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    dicts = st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    return lists | lists.map(tuple) | dicts | dicts.map(OrderedDict)


@settings(REUSING_THE_FOLDER, max_examples=60)
@given(
    value=st.recursive(PLAIN | tensors(), nested, max_leaves=12), protocol=st.sampled_from([2, 4])
)
def test_any_nesting_of_plain_values_and_tensors(tmp_path: Path, value: Any, protocol: int) -> None:
    assert_read_as_torch_does(tmp_path / "a.pth", value, protocol)


def test_a_header_needs_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.full((3, 5), 1.25), "b": torch.ones(2)}, path)
    numbers = torch.full((3, 5), 1.25).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(numbers, bytes(len(numbers))))
    assert reading.read_header(path).shapes == {"a": (3, 5), "b": (2,)}
    with pytest.raises(WeightsError, match=r"a\.pth .*Bad CRC-32.*download it again"):
        reading.read(path)


# Pickles with code. Each program is what a pickle file is: instructions of the pickle machine.


def archive(path: Path, program: bytes, parts: Mapping[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, with this data.pkl."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, part in {"byteorder": b"little", **(parts or {})}.items():
            file.writestr(f"archive/{name}", part)
    return path


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def refusal(path: Path) -> str:
    """The message with which the file, and even its header, is refused."""
    began = time.perf_counter()
    with pytest.raises(WeightsError) as error:
        reading.read(path)
    message = str(error.value)
    assert time.perf_counter() - began < 5
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 500
    return message


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def mkdir(made: Path) -> dict[str, bytes]:
    """Programs that a careless reader makes the folder `made` by."""
    folder = text(str(made))
    inner = pickle.dumps(_Evil(made), protocol=2)
    code = f"__import__('os').mkdir({str(made)!r})"
    return {
        "REDUCE": named("os", "mkdir") + folder + b"\x85R.",
        "REDUCE in a value": b"}" + text("conv") + named("os", "mkdir") + folder + b"\x85Rs.",
        "STACK_GLOBAL": text("os") + text("mkdir") + b"\x93" + folder + b"\x85R.",
        "INST": b"(" + folder + b"ios\nmkdir\n.",
        "OBJ": b"(" + named("os", "mkdir") + folder + b"o.",
        "memo": named("os", "mkdir") + b"q\0}q\1h\0" + folder + b"\x85q\2R.",
        "memoised late": b"}\x94" + named("os", "mkdir") + b"\x94h\1" + folder + b"\x85R0.",
        "eval": named("builtins", "eval") + text(code) + b"\x85R.",
        "nested": named("torch.storage", "_load_from_bytes")
        + b"B" + struct.pack("<I", len(inner)) + inner + b"\x85R.",
        "nested as text": named("_pickle", "loads")
        + named("_codecs", "encode") + text(inner.decode("latin-1")) + text("latin1")
        + b"\x86R\x85R.",
        "through an attribute": text("os") + text("path.os.mkdir") + b"\x93" + folder + b"\x85R.",
        "a state set on a class": named("types", "SimpleNamespace") + b")R}" + text("f")
        + named("os", "mkdir") + folder + b"\x85Rsb.",
    }  # fmt: skip


class _Evil:
    """A pickle of this makes a folder when it is read carelessly."""

    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._made),)


@pytest.mark.parametrize("way", mkdir(Path()))
def test_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    made = tmp_path / "made"
    program = b"\x80\4" + mkdir(made)[way]
    assert "more than weights" in refusal(archive(tmp_path / "evil.pth", program))
    assert not made.exists()
    # It is no empty threat. (torch's own function wants a whole file in there.)
    monkeypatch.setattr(torch.storage, "_load_from_bytes", pickle.loads)
    pickle.loads(program)
    assert made.exists()


def test_torch_saved_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    torch.save({"conv_first.weight": _Evil(made)}, path)
    assert "mkdir" in refusal(path)
    path.write_bytes(pickle.dumps({"conv_first.weight": _Evil(made)}))
    assert "plain pickle" in refusal(path)
    assert not made.exists()


ALLOWED = named("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "program",
    [
        named("subprocess", "Popen") + text("id") + b"\x85\x81.",
        named("subprocess", "Popen") + text("id") + b"\x85}\x92.",
        named("torch.hub", "load") + text("a/b") + text("c") + b"\x86R.",
        named("torch.jit", "load") + text("evil.pt") + b"\x85R.",
        named("torch", "load") + text("evil.pt") + b"\x85R.",
        named("torch._utils", "_rebuild_tensor_v2.__globals__") + b")R.",
        text("torch._utils") + text("_rebuild_tensor_v2.__globals__.get") + b"\x93)R.",
        named("builtins", "getattr") + ALLOWED + text("__code__") + b"\x86R.",
        named("collections", "OrderedDict.fromkeys") + text("ab") + b"\x85R.",
        named("collections", "defaultdict") + named("os", "getcwd") + b"\x85R.",
        named("numpy.core.multiarray", "_reconstruct") + b")R.",
        ALLOWED + b"}" + text("__code__") + b"Nsb.",
        ALLOWED + b"N}" + text("__defaults__") + b"Ns\x86b.",
        ALLOWED + b")R.",
        ALLOWED + b"]R.",
        text("os.mkdir") + b")R.",
        b"}" + ALLOWED + b"Ns.",
        b"N)R.",
        b"}" + named("os", "mkdir") + b")Rb.",
        b"\x82\x01.",
        b"\x83\x01\0.",
        b"\x84\x01\0\0\0.",
        b"Pid\n.",
        text("id") + b"Q.",
        b"(NNNNNtQ.",
        b"(" + text("storage") + named("os", "mkdir") + text("0") + text("cpu") + b"K\1tQ.",
        b"(" + text("module") + named("torch", "FloatStorage") + text("0") + b"NK\1tQ.",
        b"(" + text("storage") + named("torch", "ComplexFloatStorage") + text("0") + b"NK\1tQ.",
        b"(" + text("storage") + named("torch", "FloatStorage") + b"K\0NK\1tQ.",
        named("collections", "OrderedDict") + b"](K\1K\2\x86e\x85R.",
        b"]\x93.",
        b"\x8f.",
        b"\x96\0\0\0\0\0\0\0\0.",
    ],
)
def test_what_is_not_on_the_list_is_refused(tmp_path: Path, program: bytes) -> None:
    refusal(archive(tmp_path / "evil.pth", b"\x80\2" + program))


def test_a_state_set_on_a_dictionary_changes_nothing(tmp_path: Path) -> None:
    program = named("collections", "OrderedDict") + b")RN}" + text("items") + b"Ns\x86b."
    read = content(archive(tmp_path / "a.pth", program))
    assert read == {}
    assert type(read) is dict


@pytest.mark.parametrize("change", [b"}b.", b"Na0.", b"K\1Ns.", b"(NNu."])
@pytest.mark.parametrize("value", [ALLOWED, b"N", b"K\1", b")"])
def test_only_dictionaries_and_lists_are_changed(
    tmp_path: Path, value: bytes, change: bytes
) -> None:
    assert "as if it were another" in refusal(archive(tmp_path / "a.pth", value + change))


def test_extensions_that_others_registered_are_not_used(tmp_path: Path) -> None:
    made = tmp_path / "made"
    copyreg.add_extension("os", "mkdir", 201)
    try:
        program = b"\x80\2\x82\xc9" + text(str(made)) + b"\x85R."
        refusal(archive(tmp_path / "evil.pth", program))
        assert not made.exists()
        pickle.loads(program)
        assert made.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 201)


# Archives that lie


def tensor(
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
) -> bytes:
    """The instructions for a float32 tensor, as torch.save writes them."""
    storage = b"(" + text("storage") + named("torch", "FloatStorage") + text(key) + text("cpu")
    storage += integer(count) + b"tQ"
    arguments = storage + integer(offset) + integers(shape) + integers(stride) + b"\x89N"
    return ALLOWED + b"(" + arguments + b"tR"


def saved(path: Path, instructions: bytes, numbers: bytes | None = bytes(16)) -> Path:
    """A file that holds one tensor of four float32 under the name a."""
    program = b"\x80\2}" + text("a") + instructions + b"s."
    return archive(path, program, {} if numbers is None else {"data/0": numbers})


def test_the_tensor_that_the_lies_start_from_is_read(tmp_path: Path) -> None:
    assert torch.equal(
        reading.read(saved(tmp_path / "a.pth", tensor())).tensors["a"], torch.zeros(4)
    )


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (tensor(offset=1), "reaches past"),
        (tensor(shape=(5,)), "reaches past"),
        (tensor(stride=(2,)), "reaches past"),
        (tensor(shape=(2, 2), stride=(3, 1)), "reaches past"),
        (tensor(shape=(10**12,), stride=(0,)), "reaches past|unknown make"),
        (tensor(shape=(10**6, 10**6), stride=(0, 0)), "reaches past|unknown make"),
        (tensor(shape=(5,), stride=(0,)), "reaches past"),
        (tensor(shape=(-4,)), "unknown make"),
        (tensor(stride=(-1,)), "unknown make"),
        (tensor(offset=-1), "unknown make"),
        (tensor(offset=2**63), "unknown make"),
        (tensor(shape=(2**64,)), "unknown make"),
        (tensor(shape=(0, 2**39, 2**39), stride=(1, 1, 1)), "unknown make"),
        (tensor(shape=(4, 1)), "unknown make"),
        (tensor(shape=(1,) * 1000, stride=(1,) * 1000), "unknown make"),
        (tensor(count=-1), "unknown make"),
        (tensor(count=2**62), "unknown make"),
        (tensor(count=2**39), "not of the"),
        (tensor(count=5), "not of the 20 bytes"),
        (tensor(count=3, shape=(3,)), "not of the 12 bytes"),
        (tensor(count=0, shape=(0,)), "not of the 0 bytes"),
        (tensor(key="1"), "lacks its part"),
        (tensor(key="../../../etc/passwd"), "lacks its part"),
        (tensor(key="x" * 100_000), "lacks its part"),
        (tensor()[:-2] + b"NNNNtR", "unknown way"),
    ],
)
def test_tensors_that_lie_about_themselves(
    tmp_path: Path, instructions: bytes, message: str
) -> None:
    path = saved(tmp_path / "lies.pth", instructions)
    refused = refusal(path)
    assert any(part in refused for part in message.split("|")), refused


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    assert "archive/data/0" in refusal(saved(tmp_path / "a.pth", tensor(), None))


@pytest.mark.parametrize("part", ["archive/data/0", "archive/data.pkl"])
def test_a_compressed_file_is_not_unpacked(tmp_path: Path, part: str) -> None:
    path, zeros = tmp_path / "bomb.pth", bytes(1 << 24)
    parts = {"archive/data.pkl": b"\x80\2}" + text("a") + tensor(1 << 22) + b"s."}
    parts["archive/data/0"] = zeros
    if part == "archive/data.pkl":
        parts[part] += zeros
    with zipfile.ZipFile(path, "w") as file:
        for name, value in parts.items():
            file.writestr(name, value, zipfile.ZIP_DEFLATED if name == part else None)
    assert "compressed" in refusal(path)


def test_a_compressed_file_is_refused_even_if_it_fits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", tensor())
    with zipfile.ZipFile(path) as plain:
        parts = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w") as packed:
        for name, part in parts.items():
            packed.writestr(name, part, zipfile.ZIP_DEFLATED if name.endswith("/0") else None)
    assert "compressed" in refusal(path)


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\2}.")
        file.writestr("archive/data/0", bytes(10_000))
        file.filelist += [file.getinfo("archive/data/0")] * 100
    assert "may not fit the memory" in refusal(path)


def test_too_many_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pth", tensor())
    monkeypatch.setattr(pickles, "_ENTRIES", 2)
    assert "3 parts" in refusal(path)


def test_too_long_a_program_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", b"\x80\2" + b"]" * (1 << 22) + b".")
    assert "weights have far fewer" in refusal(path)


def test_two_programs_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", b"\x80\2}.", {"inner/data.pkl": b"\x80\2}."})
    assert "not one that torch.save wrote" in refusal(path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    assert "not one that torch.save wrote" in refusal(path)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", b"\x80\2}.", {"byteorder": b"big"})
    assert "big-endian" in refusal(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\2}.")
        file.getinfo("archive/data.pkl").flag_bits |= 1
    assert "encrypted" in refusal(path)


# Programs that would take for ever, or all of the memory


def test_deep_nesting_is_no_recursion(tmp_path: Path) -> None:
    depth = 100_000
    path = archive(tmp_path / "deep.pth", b"\x80\2" + b"]" * depth + b"a" * (depth - 1) + b".")
    assert "holds a list" in refusal(path)
    tuples = b"\x80\2)" + b"\x85" * depth + b"Q."
    assert "outside of itself" in refusal(archive(path, tuples))


def laughs(levels: int = 40) -> bytes:
    """A tuple of tuples of tuples ...: ten to the forty in a few hundred bytes."""
    program = text("ha") + b"\x85q\0"
    for level in range(levels):
        program += b"(" + bytes([ord("h"), level]) * 10 + b"tq" + bytes([level + 1])
    return program


@pytest.mark.parametrize(
    "program",
    [
        laughs() + b".",
        b"}" + laughs() + b"Ns.",
        b"}" + text("a") + laughs() + b"s.",
        laughs() + b"Q.",
        named("collections", "OrderedDict") + laughs() + b"R.",
        ALLOWED + laughs() + b"R.",
        b"N" + laughs() + b"R.",
        laughs() + laughs() + b"\x93.",
    ],
)
def test_a_billion_laughs_are_not_told(tmp_path: Path, program: bytes) -> None:
    refusal(archive(tmp_path / "laughs.pth", b"\x80\2" + program))


@pytest.mark.parametrize("function", ["collections OrderedDict", "torch._utils _rebuild_parameter"])
def test_a_long_list_is_not_walked_again_and_again(tmp_path: Path, function: str) -> None:
    pairs = b"](" + b"K\1K\2\x86" * 100_000 + b"e\x85q\0"
    calls = (named(*function.split()) + b"q\1" + b"h\1h\0R" * 100_000) + b"."
    path = archive(tmp_path / "long.pth", b"\x80\2" + pairs + calls)
    assert "in an unknown way" in refusal(path)


def test_a_number_of_a_million_digits_is_not_read(tmp_path: Path) -> None:
    for code in (b"I", b"L"):
        path = archive(tmp_path / "digits.pth", code + b"9" * (1 << 20) + b"L\n.")
        assert "the instruction" in refusal(path)


def test_long_names_make_no_long_messages(tmp_path: Path) -> None:
    path, long = tmp_path / "long.pth", "n" * 1_000_000
    refusal(archive(path, named("os", long) + b")R."))
    refusal(archive(path, b"}" + text(long) + b"K\1s."))
    refusal(archive(path, b"(" + text("storage") + named("torch", long) + b"NNNtQ."))
    refusal(saved(path, tensor(key=long)))
    refusal(archive(path, b"c" + long.encode() + b"\n"))


# Damage


def damaged(path: Path, right: Tensor) -> None:
    """Reads a damaged file: only a `WeightsError`, or the right content, may come of it."""
    try:
        read = reading.read(path).tensors
    except WeightsError as error:
        assert str(error).startswith(str(path))
    else:
        assert read.keys() == {"a"}
        assert torch.equal(read["a"], right)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", tensor())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"a\.pth"):
            reading.read(path)


def test_a_program_cut_anywhere_is_refused(tmp_path: Path) -> None:
    program = b"\x80\2}" + text("a") + tensor() + b"s."
    for length in range(len(program)):
        refusal(archive(tmp_path / "a.pth", program[:length], {"data/0": bytes(16)}))


@settings(REUSING_THE_FOLDER, max_examples=300)
@given(st.data())
def test_altered_bytes_of_a_file_are_noticed_or_harmless(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(4.0)}, path)
    altered = bytearray(path.read_bytes())
    places = st.integers(0, len(altered) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        altered[place] = data.draw(st.integers(0, 255))
    path.write_bytes(altered)
    damaged(path, torch.arange(4.0))


@settings(REUSING_THE_FOLDER, max_examples=400)
@given(st.data())
def test_altered_programs_give_tensors_or_a_refusal(tmp_path: Path, data: st.DataObject) -> None:
    program = bytearray(b"\x80\2}q\0(" + text("a") + tensor() + text("b") + b"h\0u.")
    places = st.integers(0, len(program) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        program[place] = data.draw(st.integers(0, 255))
    path = archive(tmp_path / "a.pth", bytes(program), {"data/0": bytes(16)})
    try:
        read = reading.read(path).tensors
    except WeightsError as error:
        assert str(error).startswith(str(path))
    else:
        assert all(value.numel() <= 16 for value in read.values())


@settings(REUSING_THE_FOLDER, max_examples=200)
@given(st.binary(max_size=200))
def test_noise_as_a_program_is_refused(tmp_path: Path, noise: bytes) -> None:
    with pytest.raises(WeightsError, match="noise"):
        reading.read(archive(tmp_path / "noise.pth", b"]" + noise))


# Files that are something else


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "download it again"),
        (b"<!DOCTYPE html><html>Not found</html>", "it is a web page; download it again"),
        (b"\xef\xbb\xbf\n<html>", "it is a web page; download it again"),
        (b"PK\3\4broken", "download it again"),
        (pickle.dumps({"a": 1}, protocol=2), "torch.load(..., weights_only=True)"),
        (pickle.dumps({"a": 1}, protocol=4), "torch.load(..., weights_only=True)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "download it again"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH"])
def test_other_files_say_what_to_do(
    tmp_path: Path, start: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(start)
    assert message in refusal(path)


def test_a_file_of_torch_before_1_6_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "torch wrote them before 1.6" in refusal(path)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "script.pt",
        b"\x80\2c__torch__.Net\nNet\nq\0)\x81}" + text("training") + b"\x88sb.",
        {"code/__torch__.py": b"", "constants.pkl": b"\x80\2)."},
    )
    assert "more than weights" in refusal(path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.pth", tensor())

    def forbid(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", forbid)
    assert "cannot be read: [Errno 13]" in refusal(path)
