"""Reads the pickles of stylegan2-ada-pytorch and stylegan3 without executing anything in them.

A pickle is a program whose instructions may import and call any function. This interpreter imports nothing. It knows
the instructions that build plain data, and the names in `_KNOWN`, each of which maps to a function of this module.
Modules of the official code become descriptions (`Module`); the Python source stored with them is dropped. Objects of
other classes, which forks add to their files, become their name (`Unknown`). Any other call is refused. Memory and time
are bounded by the size of the file.
"""

import contextlib
import io
import math
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import UserError

MAX_INSTRUCTIONS = 2_000_000  # three networks for 1024x1024 images have about 50,000
MAX_TENSOR_INSTRUCTIONS = 1_000  # of each pickle in a tensor's header; real ones have about 30
_HARMLESS = "nothing in the file was executed"
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError)  # raised by malformed instructions


@dataclass(frozen=True, eq=False)
class Module:
    """A module of the official code: its class name and saved attributes."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Unknown:
    """An object or function of another class; only its name is kept."""

    name: str


class _Refused(Exception):
    """Raised for content that network pickles do not have; the message says what."""


def load(path: str | Path) -> Any:
    """Returns the content of the pickle at `path`.

    It consists of dicts, lists, tuples, sets, strings, numbers, CPU tensors, `Module` and `Unknown`. Dict keys and set
    members other than strings and small integers are dropped.

    Raises UserError, naming the file, if it cannot be read, is damaged, or calls an unexpected function.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; give a .pkl file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _Interpreter(2 * len(content)).run(content)
    except _Refused as refusal:
        raise UserError(f"{path} {refusal}; {_HARMLESS}") from None
    except _DAMAGE:
        raise UserError(f"{path} is truncated, damaged, or not a pickle; {_HARMLESS}") from None


# ---- replacements of the names in a file ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Name:
    """A callable for a name in `_KNOWN`. The file can call it, but not read or change it."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class _Storage:
    """A tensor's storage."""

    storage: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class _StorageHeader:
    """A storage's header: dtype, key and number of elements."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class _NumpyDtype:
    """A numpy dtype code such as "f8"; files store little-endian numbers."""

    code: str


def _module(meta: Any) -> Module:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict) or meta.get("type") != "class":
        raise _Refused("describes a module in another way than the official code")
    return Module(_string(meta.get("class_name")), meta["state"])


def _storage(content: Any) -> _Storage:
    """Reads a storage from `content`, which `torch.save` wrote in its legacy (non-zip) format.

    The format is five pickles (magic number, version, system, storage header, list of its one key), the number of
    elements, and the elements. `torch.load(weights_only=True)` is not safe enough: it allocates any size that the
    header names, and calls `bytearray` and the like with any arguments.
    """
    wrong = _Refused("holds a tensor that is damaged, or that is not plain numbers")
    if not isinstance(content, bytes):
        raise wrong
    stream = io.BytesIO(content)
    try:
        magic, version, system, header, keys = (_HeaderInterpreter().run(stream) for _ in range(5))
        is_valid = (magic, version, system["little_endian"]) == (0x1950A86A20F9469CFC6C, 1001, True)
        is_valid = is_valid and isinstance(header, _StorageHeader) and keys == [header.key]
    except (_Refused, *_DAMAGE):
        raise wrong from None
    rest = memoryview(content)[stream.tell() :]
    if (
        not is_valid
        or len(rest) != 8 + header.count * header.dtype.itemsize
        or rest[:8] != struct.pack("<q", header.count)
    ):
        raise wrong
    data = bytearray(rest[8:])
    return _Storage(
        torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0),
        header.dtype,
    )


def _tensor(numbers: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> Tensor:
    """Builds a tensor; its elements must lie within the storage."""
    whole = [offset, *_tuple(size), *_tuple(stride)]
    if (
        not isinstance(numbers, _Storage)
        or len(size) != len(stride)
        or len(size) > 8
        or not all(isinstance(each, int) and 0 <= each < 2**48 for each in whole)
    ):
        raise _Refused("holds a tensor of an invalid shape")
    available = len(numbers.storage) // numbers.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > available or (math.prod(size) and last >= available):
        raise _Refused("holds a tensor larger than its storage")
    return torch.empty(0, dtype=numbers.dtype).set_(numbers.storage, offset, size, stride)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any, attributes: Any = None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused("holds a parameter that is not a tensor")
    return tensor


def _set(members: Any = ()) -> set[str | int]:
    if not isinstance(members, list | tuple):
        raise _Refused("holds a set that is not built from a list")
    return {member for member in members if _is_key(member)}


def _encode(text: Any, encoding: Any = None) -> bytes:
    """Bytes as protocol 2 stores them."""
    if encoding != "latin1":
        raise _Refused("encodes a string in an unknown way")
    return _string(text).encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype | Unknown:
    return _NumpyDtype(code) if re.fullmatch("[biuf][1248]", _string(code)) else Unknown("numpy dtype")


def _numpy_scalar(dtype: Any, content: Any) -> float | int | bool | Unknown:
    if not isinstance(dtype, _NumpyDtype):
        return Unknown("numpy scalar")
    if not isinstance(content, bytes) or len(content) != int(dtype.code[1:]):
        raise _Refused("holds a damaged numpy number")
    return np.frombuffer(content, "<" + dtype.code)[0].item()


_KNOWN: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence _reconstruct_persistent_obj": _module,
    "dnnlib.util EasyDict": dict,
    "collections OrderedDict": dict,
    "builtins set": _set,
    "__builtin__ set": _set,  # protocol 2
    "__builtin__ bytes": _no_bytes,
    "_codecs encode": _encode,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch.storage _load_from_bytes": _storage,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}


# Packages whose functions build data: arrays, dates, paths. They are never called; the result is an `Unknown`. Calls of
# other functions are refused although they would not run: a file that asks for os.system should not be trusted.
_DATA_PACKAGES = frozenset({
    *("torch", "numpy", "collections", "copyreg", "datetime", "pathlib", "decimal", "fractions", "uuid", "argparse"),
    *("dnnlib", "torch_utils", "training", "metrics", "easydict", "omegaconf", "types", "zoneinfo", "random"),
})  # fmt: skip
_DATA_BUILTINS = frozenset(f"{module} {name}" for module in ("builtins", "__builtin__") for name in (
    *("bytearray", "complex", "frozenset", "list", "tuple", "dict", "range", "xrange"),
    *("slice", "object", "str", "int", "float"),
))  # fmt: skip


def _known(name: str) -> _Name | Unknown:
    """Looks up "MODULE NAME"."""
    if name in _KNOWN:
        return _Name(name, _KNOWN[name])
    if name.startswith("dnnlib.tflib"):
        raise _Refused("is a network of the TensorFlow version; the official code (legacy.py) converts it")
    return Unknown(name)


def _call_unknown(function: Unknown) -> Unknown:
    """The result of calling an unknown function. Raises _Refused if it is not one that builds data."""
    if function.name not in _DATA_BUILTINS and re.split(r"[. ]", function.name)[0] not in _DATA_PACKAGES:
        called = printable(function.name.replace(" ", "."))
        raise _Refused(f"asks for {called}, which network files do not need: refused")
    return function


def printable(text: str) -> str:
    """Makes text from a file printable, for a message of one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


@contextlib.contextmanager
def user_errors_for(path: str | Path) -> Iterator[None]:
    """Turns a ValueError of the block into a UserError of one line that names the file."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{path} {printable(str(error))}") from None


def _is_key(value: Any) -> bool:
    """Whether a value may be a key. Large integers could be chosen to collide in the hash table."""
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**31)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("has another value where a string belongs")
    return value


def _tuple(value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise _Refused("has another value where a tuple belongs")
    return value


# ---- the interpreter ------------------------------------------------------------------------------------------------

_MARK = object()

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_WITH_VALUE = frozenset({
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
})  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Interpreter:
    """Runs the instructions of pickle protocols 2 to 5 that build plain data.

    https://github.com/python/cpython/blob/main/Lib/pickletools.py documents them. All calls together may copy
    `bytes_left` elements of bytes, strings and lists. A file that uses each once needs its size; protocol 2 needs twice
    that, since `_encode` turns strings into bytes.
    """

    def __init__(self, bytes_left: int):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = bytes_left
        self.max_instructions = MAX_INSTRUCTIONS

    def run(self, content: bytes | io.BytesIO) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if count > self.max_instructions:
                raise _Refused("has far more instructions than any network file")
            if instruction.name == "STOP":
                break
            self.step(instruction.name, argument)
        (result,) = self.stack
        return result

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _WITH_VALUE:
            stack.append(argument)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(self.top(_TUPLES[name]))]
        elif name in ("PROTO", "FRAME"):
            pass
        elif handler := getattr(self, "do_" + name.lower(), None):
            handler(argument)
        else:
            raise _Refused(f"has the instruction {name}, which network files do not need: refused")

    def top(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise _Refused("is damaged: an instruction lacks its operands")
        return values

    def pop(self) -> Any:
        (value,) = self.top(1)
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    # Memo.

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.top(1)[0]

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.top(1)[0]

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_long_binput, do_long_binget = do_binput, do_binget

    def do_pop(self, _: None) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: None) -> None:
        self.pop_to_mark()

    # Containers.

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_append(self, _: None) -> None:
        self.extend([self.pop()])

    def do_appends(self, _: None) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, values: list[Any]) -> None:
        (target,) = self.top(1)
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Unknown):
            raise _Refused("appends to something that is not a list")

    def do_setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self.update([key, value])

    def do_setitems(self, _: None) -> None:
        self.update(self.pop_to_mark())

    def update(self, pairs: list[Any]) -> None:
        (target,) = self.top(1)
        keys, values = pairs[::2], pairs[1::2]
        items = zip(keys, values, strict=True)
        if isinstance(target, dict):
            target.update({key: value for key, value in items if _is_key(key)})
        elif not isinstance(target, Unknown):
            raise _Refused("sets items of something that is not a dict")

    def do_additems(self, _: None) -> None:
        members = self.pop_to_mark()
        (target,) = self.top(1)
        if isinstance(target, set):
            target.update(_set(members))
        elif not isinstance(target, Unknown):
            raise _Refused("adds to something that is not a set")

    def do_frozenset(self, _: None) -> None:
        self.stack.append(_set(self.pop_to_mark()))

    # Names and calls.

    def known(self, name: str) -> Any:
        return _known(name)

    def do_global(self, name: str) -> None:
        self.stack.append(self.known(name))

    def do_stack_global(self, _: None) -> None:
        name, module = _string(self.pop()), _string(self.pop())
        self.stack.append(self.known(f"{module} {name}"))

    def do_reduce(self, _: None) -> None:
        arguments, function = _tuple(self.pop()), self.pop()
        if isinstance(function, Unknown):
            self.stack.append(_call_unknown(function))
            return
        if not isinstance(function, _Name):
            raise _Refused("calls something that is not a function: refused")
        if function.call is dict and arguments:
            raise _Refused("builds a dict in another way than the official code")
        self.bytes_left -= sum(len(each) for each in arguments if isinstance(each, (bytes, str, list)))
        if self.bytes_left < 0:  # the same object could be copied any number of times
            raise _Refused("builds tensors or sets larger than the file")
        self.stack.append(function.call(*arguments))

    def do_newobj(self, argument: None) -> None:
        kind = self.top(2)[0]
        if isinstance(kind, Unknown):  # an empty object: no function is called
            self.stack[-2:] = [kind]
            return
        if not isinstance(kind, _Name) or kind.call is not dict:
            raise _Refused("builds an object that is not a dict: refused")
        self.do_reduce(argument)

    def do_newobj_ex(self, argument: None) -> None:
        self.pop()
        self.do_newobj(argument)

    def do_build(self, _: None) -> None:
        state, (target,) = self.pop(), self.top(1)
        if isinstance(target, Unknown):
            return
        if isinstance(target, dict) and isinstance(state, dict):  # the attributes of an OrderedDict or EasyDict
            return
        if not isinstance(target, _NumpyDtype) or _tuple(state)[1] not in ("<", "|", "="):
            raise _Refused("sets the attributes of an object: refused")


_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch.storage UntypedStorage": torch.uint8,  # of newer dtypes
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
}


class _HeaderInterpreter(_Interpreter):
    """Runs the pickles in a tensor's header: it knows storage types, and calls nothing."""

    def __init__(self):
        super().__init__(0)
        self.max_instructions = MAX_TENSOR_INSTRUCTIONS

    def known(self, name: str) -> torch.dtype:
        return _STORAGES[name]

    def do_binpersid(self, _: None) -> None:
        _, dtype, key, _, count, view = _tuple(self.pop())
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0 or view is not None:
            raise _Refused("is not a storage header")
        self.stack.append(_StorageHeader(dtype, _string(key), count))
