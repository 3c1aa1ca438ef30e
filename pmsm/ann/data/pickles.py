"""The pickles of the CIFAR archives, read without `pickle`: a machine for the few operations that they hold.

A pickle is a program. This one knows numbers, byte strings, lists, tuples, dictionaries and a plain array of
bytes; it has no operation that could import, call or allocate anything else, and refuses every other one.
"""

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pmsm.errors import DataError

# The three names that NumPy's arrays are pickled with. They are compared as text, never imported.
ARRAY, CLASS, DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"

# Each may take a list or a tuple of memory, so a hostile file must not bring as many as it has bytes.
MAX_OPERATIONS = 2**19  # CIFAR-100's training half has about 200,000

# Operations that push their argument.
CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING"}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    text: str


@dataclass(frozen=True)
class _Bytes:
    """The dtype of unsigned bytes."""


@dataclass
class _Array:
    value: np.ndarray | None = None


class _Refused(Exception):
    """Why an operation was refused."""


def read_pickle(data: bytes, path: Path | str) -> dict[str, Any]:
    """The dictionary in one pickle of protocol 2, as Python 2 wrote those of CIFAR.

    Args:
        data: all bytes of the file.
        path: names it in a refusal.

    Returns:
        Keys are text; values are numbers, bytes, lists, tuples, or arrays of uint8, which are read-only.

    Raises:
        DataError: truncated, or it holds any operation, name or value that these files do not need.

    >>> read_pickle(b"\\x80\\x02}U\\x01aK\\x07s.", "toy")
    {'a': 7}
    """
    machine, position = _Machine(), 0
    try:
        for count, (operation, argument, place) in enumerate(pickletools.genops(data)):
            position = place or 0
            if count == MAX_OPERATIONS:
                raise _Refused(f"it has more than {MAX_OPERATIONS:,} operations")
            if operation.name != "STOP":
                machine.step(operation.name, argument)
        if position != len(data) - 1:
            raise _Refused(f"behind its end follow {len(data) - 1 - position:,} bytes")
        return machine.result()
    except _Refused as cause:
        _refuse(path, position, str(cause), cause)
    # What genops raises on operations that do not exist or end early.
    except (ValueError, IndexError, OverflowError) as cause:
        _refuse(path, position, f"damaged or truncated ({str(cause)[:120]})", cause)


def _refuse(path: Path | str, position: int, why: str, cause: Exception) -> NoReturn:
    raise DataError(
        f"cannot read {str(path)!r}, byte {position:,}: {why}. Only what CIFAR's own pickles hold is read, "
        f"and nothing in them is ever executed. Copy or download the official archive anew."
    ) from cause


class _Machine:
    """Stack, marks and memo; every value on the stack is plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One operation."""
        if name in CONSTANTS:
            self.stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
        elif name in VALUES:
            self.stack.append(VALUES[name])
        elif name in TUPLES:
            self.stack.append(tuple(self.pop(TUPLES[name])))
        elif (work := getattr(self, f"do_{name.lower()}", None)) is not None:
            work(argument)
        else:
            raise _Refused(f"the operation {name} is none of those that these files need")

    def result(self) -> dict[str, Any]:
        """What STOP leaves."""
        (found,) = self.pop(1)
        if self.stack or self.marks or not isinstance(found, dict):
            raise _Refused("what it holds is not one dictionary")
        arrays = {key: value.value if isinstance(value, _Array) else value for key, value in found.items()}
        return {key.decode("latin-1"): value for key, value in arrays.items()}

    def pop(self, count: int) -> list[Any]:
        """The uppermost values, which must lie above the last mark."""
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < floor:
            raise _Refused("an operation has too few values")
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_marked(self) -> list[Any]:
        """The values above the last mark, which goes as well."""
        if not self.marks:
            raise _Refused("a mark is missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        """The uppermost value, which stays."""
        (value,) = self.pop(1)
        if not isinstance(value, kind):
            raise _Refused(f"an operation needs a {kind.__name__.strip('_')}")
        self.stack.append(value)
        return value

    def do_proto(self, version: int) -> None:
        """Only protocol 2, that of these files."""
        if version != 2:
            raise _Refused(f"it is of protocol {version}, not 2")

    def do_mark(self, _: None) -> None:
        """Remember where the stack ends."""
        self.marks.append(len(self.stack))

    def do_empty_dict(self, _: None) -> None:
        """Push {}."""
        self.stack.append({})

    def do_empty_list(self, _: None) -> None:
        """Push []."""
        self.stack.append([])

    def do_tuple(self, _: None) -> None:
        """The values above the mark become one."""
        self.stack.append(tuple(self.pop_marked()))

    def do_append(self, _: None) -> None:
        """The uppermost value joins the list below it."""
        values = self.pop(1)
        self.top(list).extend(values)

    def do_appends(self, _: None) -> None:
        """The values above the mark join the list below it."""
        values = self.pop_marked()
        self.top(list).extend(values)

    def do_setitem(self, _: None) -> None:
        """Key and value join the dictionary below them."""
        self.set_items(self.pop(2))

    def do_setitems(self, _: None) -> None:
        """Keys and values above the mark join the dictionary below it."""
        self.set_items(self.pop_marked())

    def set_items(self, values: list[Any]) -> None:
        """Key, value, key, value."""
        keys = values[::2]
        if len(values) % 2 or not all(isinstance(key, bytes) for key in keys):
            raise _Refused("a dictionary needs byte strings as keys")
        self.top(dict).update(zip(keys, values[1::2], strict=True))

    def do_binput(self, index: int) -> None:
        """Keep the uppermost value under a number."""
        self.memo[index] = self.top(object)

    do_long_binput = do_binput

    def do_binget(self, index: int) -> None:
        """Push what was kept under a number."""
        if index not in self.memo:
            raise _Refused(f"it recalls value {index}, which it has not kept")
        self.stack.append(self.memo[index])

    do_long_binget = do_binget

    def do_global(self, name: str) -> None:
        """Push one of three known names; any other is refused, and none is ever looked up."""
        if name not in (ARRAY, CLASS, DTYPE):
            raise _Refused(f"it names {name.replace(' ', '.', 1)[:80]!r}, which is code")
        self.stack.append(_Name(name))

    def do_reduce(self, _: None) -> None:
        """Push what a known function would make: an empty array, or the type of bytes."""
        function, arguments = self.pop(2)
        if function == _Name(ARRAY) and isinstance(arguments, tuple) and arguments[:1] == (_Name(CLASS),):
            self.stack.append(_Array())
        elif function == _Name(DTYPE) and arguments in ((b"u1", 0, 1), (b"|u1", 0, 1)):
            self.stack.append(_Bytes())
        else:
            raise _Refused("it calls what is no array of unsigned bytes")

    def do_build(self, _: None) -> None:
        """Fill the array that lies below its state (version, shape, type, order, bytes)."""
        (state,) = self.pop(1)
        built = self.top(object)
        if isinstance(built, _Bytes) and isinstance(state, tuple):
            return  # byte order and alignment: a byte has none
        if not (isinstance(built, _Array) and isinstance(state, tuple) and len(state) == 5):
            raise _Refused("it gives a state to what is no array")
        _, shape, dtype, by_columns, pixels = state
        sides = shape if isinstance(shape, tuple) and all(type(side) is int for side in shape) else ()
        fits = 0 < len(sides) <= 4 and min(sides) > 0 and isinstance(pixels, bytes)
        if not fits or not isinstance(dtype, _Bytes) or by_columns or math.prod(sides) != len(pixels):
            raise _Refused("shape, type and length of its array do not fit together")
        built.value = np.frombuffer(pixels, np.uint8).reshape(sides)
