"""What a hostile hand does to a file: to any file, and to a checkpoint whose hashes it knows how to correct.

A mutation takes the bytes of a sound file and a random generator, and returns other bytes. Those in `BYTES`
serve every kind of file; those in `SIGNED` change the description or the tensors of a checkpoint and then put
the hashes right, so that what stands behind the hashes is reached.
"""

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
MARKER = "PMSM_HOSTILE_MARKER"
"""A file of this name would appear if anything were executed."""
CODE = f"__import__('os').system('touch {MARKER}')"


class Payload:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {MARKER}",)


# ----------------------------------------------------------------------------------------------------------
# Any file
# ----------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits, anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_near_the_start(data: bytes, rng: random.Random) -> bytes:
    """One bit of the first 300 bytes."""
    changed = bytearray(data)
    changed[rng.randrange(min(300, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Up to 64 bytes in a row."""
    start, count = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:start] + rng.randbytes(count) + data[start + count :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Anything from nothing to all but one byte."""
    return data[: rng.randrange(len(data))]


def extend(data: bytes, rng: random.Random) -> bytes:
    """More bytes at the end, as from a second file."""
    return data + rng.choice([b"\0" * rng.randint(1, 64), rng.randbytes(rng.randint(1, 1000)), data])


def cut_out(data: bytes, rng: random.Random) -> bytes:
    """A piece is missing, or there twice."""
    start, stop = sorted(rng.sample(range(len(data) + 1), 2))
    return data[:start] + data[stop:] if rng.random() < 0.5 else data[:stop] + data[start:]


def noise(data: bytes, rng: random.Random) -> bytes:
    """No such file at all."""
    return rng.randbytes(rng.choice([0, 1, 7, 8, 9, 16, 100, 5000]))


def pickle_instead(data: bytes, rng: random.Random) -> bytes:
    """A pickle that runs a command, alone, in front or behind."""
    payload = pickle.dumps(Payload(), protocol=rng.randint(0, 5))
    return rng.choice([payload, payload + data, data + payload, payload + b"\0" * 5000])


BYTES: dict[str, Mutation] = {
    f.__name__: f
    for f in (
        flip_bits, flip_near_the_start, overwrite, truncate, extend, cut_out, noise, pickle_instead,
    )
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------
# The header of safetensors
# ----------------------------------------------------------------------------------------------------------


def lie_about_length(data: bytes, rng: random.Random) -> bytes:
    """Another length of the header."""
    length = int.from_bytes(data[:8], "little")
    lies = [
        0,
        1,
        length - 1,
        length + 1,
        len(data),
        2**24,
        2**31,
        2**40,
        2**63,
        2**64 - 1,
        rng.getrandbits(64),
    ]
    return rng.choice(lies).to_bytes(8, "little") + data[8:]


def lie_about_a_tensor(data: bytes, rng: random.Random) -> bytes:
    """Another shape, type or place of one tensor in the table."""
    header, body = split(data)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    key = rng.choice(list(entry))
    entry[key] = mutated(entry[key], rng) if rng.random() < 0.5 else rng.choice(HOSTILE)()
    return joined(header, body)


def rename_a_tensor(data: bytes, rng: random.Random) -> bytes:
    """A path out of the network, an attribute of every module, another's name; or one less, or one more."""
    header, body = split(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header.pop(name)
    if rng.random() < 0.8:
        header[rng.choice(NAMES)] = entry
    return joined(header, body)


def repeat_a_key(data: bytes, rng: random.Random) -> bytes:
    """A key twice in the header."""
    header, body = split(data)
    text = json.dumps(header)
    key = rng.choice(list(header))
    return framed(text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(list(header.values())))}}}", body)


def nest(data: bytes, rng: random.Random) -> bytes:
    """A header of brackets, or of what JSON has no word for."""
    depth = rng.choice([65, 1000, 100_000])
    texts = [
        "[" * depth + "]" * depth, '{"a":' * depth, "[" * depth, "NaN", '{"__metadata__": NaN}',
        '{"a": ' + "9" * 5000 + "}", "[" + "{}," * 50_000 + "{}]", '"' + "\\u0000" * 10_000 + '"', "", "null",
    ]  # fmt: skip
    largest = 2**23 - 2
    if rng.random() < 0.05:  # as large a header as is read, of what takes most memory
        texts = [
            "[" + part * (largest // len(part)) for part in ("{},", '{"":0},', '"",', "1.5,", "[[],[]],")
        ]
        texts = [text[:-1] + "]" for text in texts]
    return framed(rng.choice(texts), split(data)[1])


HEADER: dict[str, Mutation] = {
    f.__name__: f for f in (lie_about_length, lie_about_a_tensor, rename_a_tensor, repeat_a_key, nest)
}


# ----------------------------------------------------------------------------------------------------------
# The description of a network, with its hashes put right
# ----------------------------------------------------------------------------------------------------------

NAMES = [
    "../../etc/passwd", "/etc/passwd", "__class__", "__init__", "forward", "_modules", "_parameters",
    "graph", "training", "", ".", "..", "a..b", CODE, f'x"); {CODE}; ("', f"x\n{CODE}\n", "self", "lambda",
    "None", "inf", "a" * 5000, "\0", "é", "os.system", "builtins.eval", "builtins.exec", "torch.load",
    "pickle.loads", "builtins.getattr", "__reduce__", "__globals__", "__subclasses__", "share_memory_",
    "torch.ops.load_library", "operator.attrgetter", "builtins.__import__", "subprocess.run", "apply_",
    "map_", "data_ptr", "numpy", "\ud800", "\x1b[2J",
]  # fmt: skip
HOSTILE: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 2**31, lambda: 2**63, lambda: 2**200,
    lambda: 10**12, lambda: 1e308, lambda: -0.5, lambda: [], lambda: {}, lambda: [[]], lambda: {"node": "x"},
    lambda: {"node": "output"}, lambda: {"float": "nan"}, lambda: {"float": "1e5"}, lambda: {"tuple": 3},
    lambda: {"dict": [[1, 2], [1, 3]]}, lambda: {"slice": [1]}, lambda: {"dtype": "object"},
    lambda: {"device": "cuda:9999999"}, lambda: {"device": CODE}, lambda: {"size": [10**12, 10**12]},
    lambda: {"code": CODE}, lambda: {"tensor": "threshold"}, lambda: [10**9] * 4, lambda: deep(10),
    lambda: deep(40), lambda: [0] * 10_000, lambda: "x" * 20_000, lambda: {"class": "os.system"},
    lambda: {"method": "__reduce__"}, lambda: {"function": "builtins.eval"},
    lambda: {"function": "builtins.getattr"}, lambda: {"node": "x", "tuple": []},
]  # fmt: skip


def deep(levels: int) -> Any:
    """A value in so many lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def change_a_value(data: bytes, rng: random.Random) -> bytes:
    """One to three places of the description hold something else, of the same type or of none."""

    def change(network: Any) -> None:
        """Delete, rename, mutate or replace values in place."""
        for _ in range(rng.randint(1, 3)):
            owner, key = rng.choice(list(places(network)))
            if rng.random() < 0.2:
                del owner[key]
            elif rng.random() < 0.3:
                owner[key] = rng.choice(NAMES)
            elif rng.random() < 0.5:
                owner[key] = mutated(owner[key], rng)
            else:
                owner[key] = rng.choice(HOSTILE)()

    return signed(data, change)


def add_a_key(data: bytes, rng: random.Random) -> bytes:
    """A key that nobody asked for."""

    def change(network: Any) -> None:
        owners = [owner for owner, _ in places(network) if isinstance(owner, dict)]
        rng.choice(owners)[rng.choice([*NAMES, "code", "pickle", "hook"])] = rng.choice(HOSTILE)()

    return signed(data, change)


def rewire(data: bytes, rng: random.Random) -> bytes:
    """Nodes in another order (a cycle), twice, gone, or reading any node at all, themselves included."""

    def change(network: Any) -> None:
        """Swap, repeat, remove, redirect or shuffle nodes in place."""
        nodes = network["nodes"]
        i, j = rng.randrange(len(nodes)), rng.randrange(len(nodes))
        what = rng.randrange(5)
        if what == 0:
            nodes[i], nodes[j] = nodes[j], nodes[i]
        elif what == 1:
            nodes.insert(i, dict(nodes[j]))
        elif what == 2:
            del nodes[i]
        elif what == 3:
            nodes[i]["args"] = [{"node": nodes[j]["name"]}]
        else:
            rng.shuffle(nodes)

    return signed(data, change)


def rename(data: bytes, rng: random.Random) -> bytes:
    """Another operator, target, class, method, attribute or path."""

    def change(network: Any) -> None:
        """Another word where a word has a meaning."""
        names = [
            (owner, key)
            for owner, key in places(network)
            if key in ("target", "op", "class", "name", "module", "held", "function", "method", "node")
        ]
        owner, key = rng.choice(names)
        owner[key] = rng.choice(NAMES)
        if key == "target" and rng.random() < 0.5:
            owner["op"] = rng.choice(
                ["call_function", "call_method", "get_attr", "placeholder", "call_module"]
            )

    return signed(data, change)


def enlarge(data: bytes, rng: random.Random) -> bytes:
    """A network of terabytes: every number of one module is huge."""

    def change(network: Any) -> None:
        """Every number of one module."""
        module = rng.choice(list(network["modules"].values()))
        for owner, key in list(places(module)):
            if type(owner[key]) is int:
                owner[key] = rng.choice([10**6, 10**9, 2**40, 2**62])

    return signed(data, change)


def poison_a_tensor(data: bytes, rng: random.Random) -> bytes:
    """NaN, Inf, negative or any values in a tensor, under their right hash; or a pickle in its place."""
    header, body = split(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    begin, end = header[name]["data_offsets"]
    patterns = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\0\0\x80\xbf", b"\xff" * 4, b"\0" * 4]
    filling = rng.choice([*patterns, rng.randbytes(4), pickle.dumps(Payload())])
    content = (filling * (end - begin))[: end - begin]
    body = body[:begin] + content + body[end:]

    def change(network: Any) -> None:
        network["tensors"][name]["sha256"] = hashlib.sha256(content).hexdigest()

    return signed(joined(header, body), change)


SIGNED: dict[str, Mutation] = {
    f.__name__: f for f in (change_a_value, add_a_key, rewire, rename, enlarge, poison_a_tensor)
}


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    """A safetensors file; nothing is checked."""
    return framed(json.dumps(header), body)


def framed(text: str, body: bytes) -> bytes:
    """A text as the header in front of a body."""
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + body


def signed(data: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with its description changed and the hash of the description put right."""
    header, body = split(data)
    metadata = header["__metadata__"]
    network = json.loads(metadata["network"])
    change(network)
    metadata["network"] = json.dumps(network)
    metadata["network_sha256"] = hashlib.sha256(metadata["network"].encode()).hexdigest()
    return joined(header, body)


def places(value: Any) -> Any:
    """(owner, key) of every value in nested objects and arrays."""
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(keys):
        yield value, key
        yield from places(part)


def mutated(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, value * 2, value + 10**6, 2**40])
    if isinstance(value, float):
        return value * rng.choice([-1.0, 0.0, 1.0001, 1e300])
    if isinstance(value, str):
        return (
            value + "x"
            if not value or rng.random() < 0.3
            else rng.choice([value[:-1], value[::-1], value.upper()])
        )
    if isinstance(value, list):
        return value[::-1] if rng.random() < 0.5 else value * 2
    return {} if isinstance(value, dict) else 0
