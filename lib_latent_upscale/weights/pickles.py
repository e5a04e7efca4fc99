"""Reading the tensors of a torch pickle without running anything in it.

A pickle is a program for a small machine that can call any function there is. `torch.load` with
`weights_only=True` runs a tamed one; that has had holes (CVE-2025-32434, CVE-2026-24747), and
the WebUIs pin a torch that has them. The machine here knows the few instructions and the few
names that a state dict is written with. What it builds is dictionaries, lists, tuples, numbers,
text and descriptions of tensors: it holds no function of Python that a file could call or change.

The file is the zip archive that torch.save writes since 1.6: `data.pkl`, the pickle, and
`data/KEY`, the bytes of each storage, none of them compressed.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files
from .errors import WeightsError

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PROGRAM_BYTES = 4 << 20  # the largest published one has 1 MB
_ENTRIES = 100_000
_DIMENSIONS = 16
_MESSAGE = 200  # letters of a message that are the file's: names in it can be long

# What zipfile and torch raise for bytes that make no sense; an archive that is encrypted is a
# RuntimeError.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, ValueError, struct.error)


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names: never looked up, only compared."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


@dataclass(frozen=True)
class _Storage:
    """A run of numbers in the archive, not read yet."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that `PickleFile.tensor` reads."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PickleFile:
    """An open .pth or .pt file; see `open_pickle`. `content` holds `LazyTensor`s for tensors."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._folder = _check_archive(archive, size)
        self._parts = {one.filename: one.file_size for one in archive.infolist()}
        self._read: dict[str, bytearray] = {}
        self.content = _Machine().run(archive.read(f"{self._folder}data.pkl"))

    def tensor(self, lazy: LazyTensor) -> Tensor:
        """Reads a tensor; its storage's checksum is checked.

        Tensors of one storage share memory, as they did when they were saved.
        """
        storage = lazy.storage
        name = f"{self._folder}data/{storage.key}"
        wanted = storage.count * storage.dtype.itemsize
        if name not in self._parts:
            raise _Refused(f"it lacks its part {name}")
        if self._parts[name] != wanted:
            raise _Refused(f"{name} is not of the {wanted} bytes that its tensor says")
        if not wanted:
            return torch.empty(lazy.shape, dtype=storage.dtype)
        if name not in self._read:
            self._read[name] = bytearray(self._archive.read(name))
        numbers = torch.frombuffer(self._read[name], dtype=storage.dtype)
        return numbers.as_strided(lazy.shape, lazy.stride, lazy.offset)


@contextmanager
def open_pickle(path: Path) -> Iterator[PickleFile]:
    """Opens a file for `PickleFile.tensor`.

    Raises `WeightsError`, here and in the `with` block, for a file that is damaged or holds
    anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield PickleFile(archive, path.stat().st_size)
    except _Refused as error:
        raise WeightsError(
            f"{path} is refused: {str(error)[:_MESSAGE]}. Get it from its author anew, as "
            ".safetensors if there is one."
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except _ZIP_ERRORS as error:
        raise WeightsError(
            f"{path} is damaged or no file of torch: {_what_it_is(path, error)}"
        ) from error


def _what_it_is(path: Path, error: Exception) -> str:
    """What a file is that is no archive, and what to do."""
    if files.first_bytes(path)[:1] == b"\x80":
        return (
            "it is a plain pickle, as torch wrote them before 1.6. If you trust it, read it with "
            "torch.load(..., weights_only=True) and torch.save what you get"
        )
    if files.is_web_page(path):
        return "it is a web page; download it again"
    return f"{str(error)[:_MESSAGE]}; download it again"


class _Refused(ValueError):
    """What is wrong with a file; becomes a `WeightsError` that names it."""


def _check_archive(archive: zipfile.ZipFile, size: int) -> str:
    """The folder in the archive that all lies in; its sizes are what the file can hold."""
    entries = archive.infolist()
    if len(entries) > _ENTRIES:
        raise _Refused(f"it has {len(entries)} parts; no upscaler's weights have so many")
    packed = [one for one in entries if one.compress_type or one.file_size != one.compress_size]
    if packed or sum(one.file_size for one in entries) > size:
        raise _Refused("it is compressed, which torch.save never does: it may not fit the memory")
    programs = [one for one in entries if one.filename.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise _Refused("it is a zip archive, but not one that torch.save wrote")
    if programs[0].file_size > _PROGRAM_BYTES:
        raise _Refused(f"its data.pkl has {programs[0].file_size} bytes; weights have far fewer")
    folder = programs[0].filename[: -len("data.pkl")]
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise _Refused("it was written on a big-endian machine; save it anew on another one")
    return folder


def _call(function: Any, arguments: Any) -> Any:
    """What REDUCE does: makes the value that a call to a name on the list stands for."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("it calls something that is no function")
    build = _CALLS.get(str(function))
    if build is None:
        raise _Refused(f"it holds more than weights: it calls {function}")
    try:
        return build(*arguments)
    except TypeError as error:
        raise _Refused(f"it calls {function} in an unknown way") from error


# None of these takes more arguments than torch.save writes: a long list, named a million times by
# the pickle's memo, would be walked a million times.


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> LazyTensor:
    """A tensor whose every element lies in its storage, none of them more than once over."""
    if not isinstance(storage, _Storage) or not _sizes(shape) or not _sizes(stride):
        raise _Refused("it has a tensor of an unknown make")
    extent = math.prod(max(side, 1) for side in shape[:_DIMENSIONS])
    if not _sizes((offset, extent)) or len(shape) != len(stride) or len(shape) > _DIMENSIONS:
        raise _Refused("it has a tensor of an unknown make")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride))
    count = math.prod(shape)
    if count and (last >= storage.count or count > storage.count):
        raise _Refused(f"a tensor of shape {shape} reaches past its {storage.count} numbers")
    return LazyTensor(storage, offset, shape, stride)


def _sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        type(one) is int and 0 <= one < 1 << 40 for one in value
    )


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> LazyTensor:
    if not isinstance(data, LazyTensor):
        raise _Refused("it has a parameter that is no tensor")
    return data


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _storage(persistent_id: Any) -> _Storage:
    """What BINPERSID does: ("storage", type, key, device, count) is a part of the archive."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != 5:
        raise _Refused("it refers to something outside of itself")
    kind, type_, key, _, count = persistent_id
    if kind != "storage" or not isinstance(type_, _Name) or type_.module != "torch":
        raise _Refused("it refers to something outside of itself")
    if type_.name not in _DTYPES:
        raise _Refused(f"it has numbers of the type {type_}")
    if not isinstance(key, str) or not _sizes((count,)):
        raise _Refused("it has numbers of an unknown make")
    return _Storage(key, _DTYPES[type_.name], count)


def _key(value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool)):
        raise _Refused(f"it has a dictionary with a {type(value).__name__} as a key")
    return value


_MARK = object()

_INSTRUCTIONS = {opcode.code: opcode for opcode in pickletools.opcodes}


class _Machine:
    """Runs a pickle's instructions, those on the list only."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """The value that the program leaves."""
        try:
            stream = io.BytesIO(program)
            while code := stream.read(1):
                opcode = _INSTRUCTIONS[code.decode("latin-1")]
                if opcode.name == "STOP":
                    return self._pop()
                run = getattr(self, f"_run_{opcode.name.lower()}", None)
                if run is None and opcode.name not in _CONSTANTS:
                    # Before its argument is read: that of INT can be a number of a million digits.
                    raise _Refused(f"it holds more than weights: the instruction {opcode.name}")
                argument = opcode.arg.reader(stream) if opcode.arg is not None else None
                if run is None:
                    self._stack.append(_CONSTANTS[opcode.name](argument))
                else:
                    run(argument)
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, _Refused):
                raise
            raise _Refused(f"its pickle is damaged ({error})") from error
        raise _Refused("its pickle has no end")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise _Refused("its pickle is damaged")
        return value

    def _pop_to_mark(self) -> list[Any]:
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise _Refused("its pickle is damaged")
        values = self._stack[start + 1 :]
        del self._stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise _Refused(f"it changes a {type(self._stack[-1]).__name__} as if it were another")
        return self._stack[-1]

    # The instructions: the name of each is that of pickletools, in small letters.

    def _run_proto(self, version: int) -> None:
        pass

    def _run_frame(self, length: int) -> None:
        pass

    def _run_mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def _run_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        self._stack.append(_Name(module, attribute))

    def _run_stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Refused("it names something by what is no text")
        self._stack.append(_Name(module, name))

    def _run_reduce(self, _: None) -> None:
        arguments = self._pop()
        self._stack.append(_call(self._pop(), arguments))

    def _run_binpersid(self, _: None) -> None:
        self._stack.append(_storage(self._pop()))

    def _run_build(self, _: None) -> None:
        self._pop()  # the version numbers that torch hangs on a state dict
        self._top(dict)

    def _run_binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _run_long_binput = _run_binput

    def _run_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _run_binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _run_long_binget = _run_binget

    def _run_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _run_tuple1(self, _: None) -> None:
        self._tuple(1)

    def _run_tuple2(self, _: None) -> None:
        self._tuple(2)

    def _run_tuple3(self, _: None) -> None:
        self._tuple(3)

    def _tuple(self, length: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(length)][::-1]))

    def _run_append(self, _: None) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _run_appends(self, _: None) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def _run_setitem(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_key(key)] = value

    def _run_setitems(self, _: None) -> None:
        values = self._pop_to_mark()
        self._top(dict).update({_key(k): v for k, v in zip(values[::2], values[1::2])})


_CONSTANTS: Mapping[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        lambda argument: argument,
    ),
}
