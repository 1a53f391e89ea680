"""The program inside a checkpoint of ``torch.save``, run without trust.

A pickle is a program. Here it runs on a machine of our own, which knows the two dozen opcodes and the few
globals that torch.save needs for a state dict, and which imports and calls nothing: what a global or a
call stands for is described by `Global`, `Storage` and `Tensor`. A `pickle.Unpickler` with a strict
``find_class`` runs no foreign code either, but two megabytes of nested tuples as the key of a dict
overflow its C stack and end the process.

Source: ``torch.save`` and ``torch._utils`` of PyTorch 2.13; the format is the same since 1.6.
"""

import dataclasses
import io
import pickle  # the names of its opcodes; nothing is unpickled with it
import struct
from collections.abc import Callable
from typing import Any

from jmi.errors import CheckpointError

# Global -> dtype as safetensors spells it. The old dtypes have storages of their own; the newer ones lie
# in storages of bytes and are named beside them.
_DTYPES = {
    "torch.BoolStorage": "BOOL",
    "torch.ByteStorage": "U8",
    "torch.CharStorage": "I8",
    "torch.ShortStorage": "I16",
    "torch.IntStorage": "I32",
    "torch.LongStorage": "I64",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.FloatStorage": "F32",
    "torch.DoubleStorage": "F64",
    "torch.ComplexFloatStorage": "C64",
    "torch.storage.UntypedStorage": "U8",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
}
_ADMITTED = {
    *_DTYPES,
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function of Python, by name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A stretch of ``numel`` elements, in the archive under ``data/<key>``."""

    dtype: str
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; ``offset`` and ``strides`` count elements of ``dtype``."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def run(program: bytes) -> Any:
    """What a pickle describes: dicts, lists, tuples, scalars, `Tensor`, `Storage` and `Global`.

    Raises:
      CheckpointError: it is damaged, or does what torch.save never does for a state dict.
    """
    machine = _Machine(program)
    try:
        while (opcode := machine.take(1)) != pickle.STOP:
            machine.step(opcode)
        return machine.stack.pop()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"data.pkl is damaged ({error}); download the file again") from None


def described(value: Any) -> str:
    """``value`` in a word or two, however deep it nests."""
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return value.name if isinstance(value, Global) else type(value).__name__.lower()


class _Machine:
    """The stack machine of pickle, as far as state dicts go."""

    def __init__(self, program: bytes) -> None:
        self.program = io.BytesIO(program)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        taken = self.program.read(count)
        if len(taken) != count:
            raise ValueError("it ends early")
        return taken

    def number(self, form: str) -> Any:
        """The next number, of a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def marked(self) -> list[Any]:
        """Takes what lies above the last mark off the stack."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def step(self, opcode: bytes) -> None:
        """One opcode."""
        stack = self.stack
        match opcode:
            case _ if opcode in _PUSHES:
                stack.append(_PUSHES[opcode](self))
            case pickle.MARK:
                self.marks.append(len(stack))
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self.memo[self.number("B" if opcode == pickle.BINPUT else "<I")] = stack[-1]
            case pickle.APPEND | pickle.APPENDS:
                values = self.marked() if opcode == pickle.APPENDS else [stack.pop()]
                stack[-1].extend(values)
            case pickle.SETITEM | pickle.SETITEMS:
                values = self.marked() if opcode == pickle.SETITEMS else [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], values)
            case pickle.BUILD:
                stack.pop()  # attributes: the _metadata of a state dict, which says nothing of tensors
            case pickle.REDUCE:
                args = stack.pop()
                stack.append(_call(stack.pop(), args))
            case pickle.PROTO:
                self.take(1)
            case _:
                raise CheckpointError(
                    f"the pickle has opcode {opcode!r}, which torch.save does not write (unless told to use "
                    "another pickle_protocol); refused"
                )


def _global(machine: _Machine) -> Global:
    name = ".".join(machine.program.readline()[:200].strip().decode() for _ in range(2))
    if name not in _ADMITTED:
        raise CheckpointError(
            f"the pickle asks for {name!r}; only dense tensors in a flat state dict are read, so this was "
            "refused and nothing was run. If you trust it, load it with torch and save those tensors alone"
        )
    return Global(name)


_PUSHES: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.NONE: lambda _: None,
    pickle.NEWTRUE: lambda _: True,
    pickle.NEWFALSE: lambda _: False,
    pickle.EMPTY_DICT: lambda _: {},
    pickle.EMPTY_LIST: lambda _: [],
    pickle.EMPTY_TUPLE: lambda _: (),
    pickle.BININT: lambda machine: machine.number("<i"),
    pickle.BININT1: lambda machine: machine.number("B"),
    pickle.BININT2: lambda machine: machine.number("<H"),
    pickle.LONG1: lambda machine: int.from_bytes(machine.take(machine.number("B")), "little", signed=True),
    pickle.BINFLOAT: lambda machine: machine.number(">d"),
    pickle.BINUNICODE: lambda machine: machine.take(machine.number("<I")).decode("utf-8", "surrogatepass"),
    pickle.TUPLE: lambda machine: tuple(machine.marked()),
    pickle.TUPLE1: lambda machine: _last(machine.stack, 1),
    pickle.TUPLE2: lambda machine: _last(machine.stack, 2),
    pickle.TUPLE3: lambda machine: _last(machine.stack, 3),
    pickle.BINGET: lambda machine: machine.memo[machine.number("B")],
    pickle.LONG_BINGET: lambda machine: machine.memo[machine.number("<I")],
    pickle.GLOBAL: _global,
    pickle.BINPERSID: lambda machine: _storage(machine.stack.pop()),
}


def _last(stack: list[Any], count: int) -> tuple[Any, ...]:
    return tuple([stack.pop() for _ in range(count)][::-1])


def _set_items(target: Any, values: list[Any]) -> None:
    # Any other key would be hashed, as deep as it nests.
    if type(target) is not dict or any(type(key) not in (str, int) for key in values[::2]):
        raise TypeError("not a dict with names as keys")
    target.update(zip(values[::2], values[1::2], strict=True))


def _storage(value: Any) -> Storage:
    match value:
        case ("storage", Global(kind), str(key), str(), int(numel)) if kind in _DTYPES and numel >= 0:
            return Storage(_DTYPES[kind], key, numel)
    raise CheckpointError("the pickle describes a storage in a way torch.save does not; refused")


def _call(function: Any, args: Any) -> Any:
    """What a call stands for; nothing is called."""
    name = function.name.removeprefix("torch._utils.") if isinstance(function, Global) else None
    match name, args:
        case "collections.OrderedDict", ():
            return {}
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "_rebuild_parameter", (Tensor() as tensor, _, _):
            return tensor
        case "_rebuild_tensor_v2", (Storage() as storage, at, tuple(shape), tuple(strides), _, _, *more):
            return _sound(Tensor(storage, storage.dtype, at, shape, strides), more)
        case (
            "_rebuild_tensor_v3",
            (Storage() as storage, at, tuple(shape), tuple(strides), _, _, Global(kind), *more),
        ) if kind in _DTYPES:
            return _sound(Tensor(storage, _DTYPES[kind], at, shape, strides), more)
    raise CheckpointError(f"the pickle calls {described(function)} as torch.save does not; refused")


def _sound(tensor: Tensor, metadata: list[Any]) -> Tensor:
    if any(metadata):
        raise CheckpointError("holds a lazily conjugated or negated tensor; save it after .resolve_conj()")
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor whose shape, strides or offset are none")
    return tensor
