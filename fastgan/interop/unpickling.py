"""The pickles of stylegan2-ada-pytorch and stylegan3, read without executing anything in them.

A pickle is a program, whose instructions may import any function and call it. Here a machine of its own runs it, which
imports nothing: it knows the instructions that make plain data, and the few names of `_KNOWN`, for each of which stands
a function of this module. A module of the official code is not made, but described (`Module`); the Python source that
the file holds for it is dropped. Objects of other classes, such as forks add to their files, are not made either, but
named (`Stranger`). Calls of anything else are refused, as no file of networks has a use for them. What a hostile file
can cost is limited by its size.
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

MOST_INSTRUCTIONS = 2_000_000  # three networks of 1024x1024 pixels have some 50,000
MOST_INSTRUCTIONS_OF_A_TENSOR = 1_000  # of each pickle in front of its numbers; those have some 30 at most
_HARMLESS = "nothing in the file was executed"
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError)  # what instructions raise that make no sense


@dataclass(frozen=True, eq=False)
class Module:
    """A module of the official code: the name of its class, and the attributes it had when it was saved."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stranger:
    """An object or function of which nothing is known, and nothing kept, but its name."""

    name: str


class _Refused(Exception):
    """Something that does not belong into these files; the message says what."""


def load(path: str | Path) -> Any:
    """What the pickle at `path` describes: dicts, lists, tuples, sets, strings, numbers, tensors on the CPU, `Module`,
    `Stranger`. Keys of dicts and members of sets that are no strings or small numbers are left out.

    Raises UserError, naming the file, if it cannot be read, is damaged, or calls what makes no such thing.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; give one that ends in .pkl")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _Machine(2 * len(content)).run(content)
    except _Refused as refusal:
        raise UserError(f"{path} {refusal}; {_HARMLESS}") from None
    except _DAMAGE:
        raise UserError(f"{path} is truncated, damaged, or no pickle; {_HARMLESS}") from None


# ---- what stands for the names in a file ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Name:
    """What a file gets that asks for one of `_KNOWN`: something to call, of which it can see and change nothing."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The memory of a tensor."""

    storage: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class _Described:
    """What stands for that memory in front of the numbers: so many of them, under this key."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class _NumpyDtype:
    """Kind and size of one of numpy's numbers, such as "f8"; files have them as little-endian."""

    code: str


def _module(meta: Any) -> Module:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict) or meta.get("type") != "class":
        raise _Refused("describes a module in a way that the official code does not")
    return Module(_string(meta.get("class_name")), meta["state"])


def _numbers(content: Any) -> _Numbers:
    """Those in the bytes `content`, which `torch.save` wrote as it did before it wrote archives.

    That is five pickles (a magic number, a version, the machine, what the memory is, a list of its one key), how many
    numbers there are, and the numbers. `torch.load(weights_only=True)` is not asked: it makes memory of any size that
    the fourth names, filled or not, and calls `bytearray` and the like with any arguments.
    """
    wrong = _Refused("holds a tensor that is damaged, or that is more than numbers")
    if not isinstance(content, bytes):
        raise wrong
    stream = io.BytesIO(content)
    try:
        magic, version, machine, memory, keys = (_Describing().run(stream) for _ in range(5))
        is_whole = (magic, version, machine["little_endian"]) == (0x1950A86A20F9469CFC6C, 1001, True)
        is_whole = is_whole and isinstance(memory, _Described) and keys == [memory.key]
    except (_Refused, *_DAMAGE):
        raise wrong from None
    rest = memoryview(content)[stream.tell() :]
    if (
        not is_whole
        or len(rest) != 8 + memory.count * memory.dtype.itemsize
        or rest[:8] != struct.pack("<q", memory.count)
    ):
        raise wrong
    numbers = bytearray(rest[8:])
    return _Numbers(
        torch.frombuffer(numbers, dtype=torch.uint8).untyped_storage() if numbers else torch.UntypedStorage(0),
        memory.dtype,
    )


def _tensor(numbers: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> Tensor:
    """A tensor that lies within its memory and is no larger."""
    whole = [offset, *_tuple(size), *_tuple(stride)]
    if (
        not isinstance(numbers, _Numbers)
        or len(size) != len(stride)
        or len(size) > 8
        or not all(isinstance(each, int) and 0 <= each < 2**48 for each in whole)
    ):
        raise _Refused("holds a tensor whose shape makes no sense")
    available = len(numbers.storage) // numbers.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > available or (math.prod(size) and last >= available):
        raise _Refused("holds a tensor that is larger than its memory")
    return torch.empty(0, dtype=numbers.dtype).set_(numbers.storage, offset, size, stride)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any, attributes: Any = None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused("holds a parameter that is no tensor")
    return tensor


def _set(members: Any = ()) -> set[str | int]:
    if not isinstance(members, list | tuple):
        raise _Refused("holds a set that is not made of a list")
    return {member for member in members if _is_key(member)}


def _encode(text: Any, encoding: Any = None) -> bytes:
    """Bytes, as protocol 2 has them."""
    if encoding != "latin1":
        raise _Refused("encodes a string in a way that pickles do not")
    return _string(text).encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype | Stranger:
    return _NumpyDtype(code) if re.fullmatch("[biuf][1248]", _string(code)) else Stranger("numpy dtype")


def _numpy_scalar(dtype: Any, content: Any) -> float | int | bool | Stranger:
    if not isinstance(dtype, _NumpyDtype):
        return Stranger("numpy scalar")
    if not isinstance(content, bytes) or len(content) != int(dtype.code[1:]):
        raise _Refused("holds a number of numpy's that is damaged")
    return np.frombuffer(content, "<" + dtype.code)[0].item()


_KNOWN: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence _reconstruct_persistent_obj": _module,
    "dnnlib.util EasyDict": dict,
    "collections OrderedDict": dict,
    "builtins set": _set,
    "__builtin__ set": _set,  # as protocol 2 has it
    "__builtin__ bytes": _no_bytes,
    "_codecs encode": _encode,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch.storage _load_from_bytes": _numbers,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}


# Where functions come from that make data: arrays, dates, paths. What they would return is a `Stranger`. None is ever
# called; that others are refused is an alarm: a file that asks for os.system is not worth anyone's trust.
_MAKE_DATA = frozenset({
    *("torch", "numpy", "collections", "copyreg", "datetime", "pathlib", "decimal", "fractions", "uuid", "argparse"),
    *("dnnlib", "torch_utils", "training", "metrics", "easydict", "omegaconf", "types", "zoneinfo", "random"),
})  # fmt: skip
_MAKE_DATA_TOO = frozenset(f"{module} {name}" for module in ("builtins", "__builtin__") for name in (
    *("bytearray", "complex", "frozenset", "list", "tuple", "dict", "range", "xrange"),
    *("slice", "object", "str", "int", "float"),
))  # fmt: skip


def _known(name: str) -> _Name | Stranger:
    """For a module and a name in it, with a space between them."""
    if name in _KNOWN:
        return _Name(name, _KNOWN[name])
    if name.startswith("dnnlib.tflib"):
        raise _Refused("is a network of the TensorFlow version; the official code (legacy.py) converts it")
    return Stranger(name)


def _stranger(function: Stranger) -> Stranger:
    """What a call of an unknown function is taken to return. Raises _Refused for those that make no data."""
    if function.name not in _MAKE_DATA_TOO and re.split(r"[. ]", function.name)[0] not in _MAKE_DATA:
        called = shown(function.name.replace(" ", "."))
        raise _Refused(f"asks for {called}, which these networks have no use for: refused")
    return function


def shown(text: str) -> str:
    """Text that a file has a part in, for a message of one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within the block a ValueError says what is wrong with the file at `path`: it becomes a UserError of one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{path} {shown(str(error))}") from None


def _is_key(value: Any) -> bool:
    """Larger numbers could be chosen to have the same hash."""
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**31)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("has something else where a string belongs")
    return value


def _tuple(value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise _Refused("has something else where a tuple belongs")
    return value


# ---- the machine ----------------------------------------------------------------------------------------------------

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


class _Machine:
    """Instructions as https://github.com/python/cpython/blob/main/Lib/pickletools.py explains them; those of protocols
    2 to 5 that make plain data.

    Calls may copy `bytes_left` elements of bytes, strings and lists, all together. A file that names each once copies
    them once; one of protocol 2 twice, since `_encode` makes bytes of strings.
    """

    def __init__(self, bytes_left: int):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = bytes_left
        self.most_instructions = MOST_INSTRUCTIONS

    def run(self, content: bytes | io.BytesIO) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if count > self.most_instructions:
                raise _Refused("is far longer than any of these networks")
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
            raise _Refused(f"has the instruction {name}, which these networks have no use for: refused")

    def top(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise _Refused("is damaged: an instruction lacks what it works on")
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

    # Objects seen before.

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
        elif not isinstance(target, Stranger):
            raise _Refused("appends to something that is no list")

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
        elif not isinstance(target, Stranger):
            raise _Refused("sets items of something that is no dict")

    def do_additems(self, _: None) -> None:
        members = self.pop_to_mark()
        (target,) = self.top(1)
        if isinstance(target, set):
            target.update(_set(members))
        elif not isinstance(target, Stranger):
            raise _Refused("adds to something that is no set")

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
        if isinstance(function, Stranger):
            self.stack.append(_stranger(function))
            return
        if not isinstance(function, _Name):
            raise _Refused("calls something that is no function: refused")
        if function.call is dict and arguments:
            raise _Refused("makes a dict in a way that the official code does not")
        self.bytes_left -= sum(len(each) for each in arguments if isinstance(each, (bytes, str, list)))
        if self.bytes_left < 0:  # the same ones could be named any number of times
            raise _Refused("makes tensors or sets that are larger than the file")
        self.stack.append(function.call(*arguments))

    def do_newobj(self, argument: None) -> None:
        kind = self.top(2)[0]
        if isinstance(kind, Stranger):  # an object as it was before it had attributes: no function is called for it
            self.stack[-2:] = [kind]
            return
        if not isinstance(kind, _Name) or kind.call is not dict:
            raise _Refused("makes an object that is no dict: refused")
        self.do_reduce(argument)

    def do_newobj_ex(self, argument: None) -> None:
        self.pop()
        self.do_newobj(argument)

    def do_build(self, _: None) -> None:
        state, (target,) = self.pop(), self.top(1)
        if isinstance(target, Stranger):
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


class _Describing(_Machine):
    """That of the pickles in front of a tensor's numbers: it knows kinds of memory, and calls nothing."""

    def __init__(self):
        super().__init__(0)
        self.most_instructions = MOST_INSTRUCTIONS_OF_A_TENSOR

    def known(self, name: str) -> torch.dtype:
        return _STORAGES[name]

    def do_binpersid(self, _: None) -> None:
        _, dtype, key, _, count, view = _tuple(self.pop())
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0 or view is not None:
            raise _Refused("is no description of a tensor's memory")
        self.stack.append(_Described(dtype, _string(key), count))
