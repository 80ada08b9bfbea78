"""Malicious checkpoints, each with a valid digest where possible.

`python tests/cases/hostile.py` loads each in a separate process, and prints how many
are refused as documented, and the worst time and memory. It creates the files without
the library.
"""

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator

NAN = math.nan
BIG = 10**400
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "U32": 4,
    "U8": 1,
    "BOOL": 1,
}
WORDS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
}
WORDS |= {"U32": "<u4", "U8": "|u1", "BOOL": "|b1"}

MODEL = {"type": "Dense", "width": 3, "bias": True}
DESCRIPTION = {
    "format": 1,
    "model": MODEL,
    "loss": {"function": "mean_squared_error"},
    "optimizer": {"type": "SGD", "rate": 0.1},
    "shape": [4],
    "dtype": "float32",
    "seed": 0,
    "keep_finite": True,
    "steps": 7,
    "epoch": 2,
    "open": [0, 0, 0, True],
    "limits": [4],
    "longest": {},
    "notes": {},
    "kept": [],
}
ARRAYS = {
    "params.weight": ("F32", [4, 3]),
    "params.bias": ("F32", [3]),
    "moments.step": ("I32", []),
}


def nbytes(code, shape):
    return SIZES.get(code, 4) * math.prod(shape)


def plain(arrays=None):
    """Entries of a header and the bytes that they name."""
    entries, end = {}, 0
    for name, (code, shape) in (ARRAYS if arrays is None else arrays).items():
        size = nbytes(code, shape)
        entries[name] = {
            "dtype": code,
            "shape": shape,
            "data_offsets": [end, end + size],
        }
        end += size
    return entries, bytes(end)


def total(entries, data, text):
    """Return the digest of the entries of a file, as far as they can be read."""
    result = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, entry in sorted(entries.items()):
        try:
            start, end = entry["data_offsets"]
            title = f"\n{name} {WORDS[entry['dtype']]} {tuple(entry['shape'])}\n"
            result.update(title.encode() + data[start:end])
        except (KeyError, TypeError, ValueError):
            continue
    return result.hexdigest()


def framed(head: bytes, data: bytes) -> bytes:
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def encode(
    description=None, arrays=None, entries=None, data=None, metadata=None, text=None
):
    """Return the bytes of a checkpoint in which only these parts are changed."""
    sound, zeros = plain(arrays)
    entries, data = (
        sound if entries is None else entries,
        zeros if data is None else data,
    )
    if text is None:
        text = json.dumps(DESCRIPTION if description is None else description)
    says = {"agnostic_nn": text, "sha256": total(entries, data, text)}
    says |= metadata or {}
    says = {name: value for name, value in says.items() if value is not ...}
    return framed(json.dumps({"__metadata__": says, **entries}).encode(), data)


def changed(name, **fields):
    """A header in which fields of an entry are others; `...` takes one away."""
    entries, _ = plain()
    entry = entries[name] | fields
    entries[name] = {key: value for key, value in entry.items() if value is not ...}
    return entries


# --- the kinds ------------------------------------------------------------------------

FOREIGN = {
    "zip": b"PK\x03\x04" + bytes(60),
    "PyTorch": b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(60),
    "npz": b"PK\x03\x04" + bytes(26) + b"a.npy" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(90),
    "npy": b"\x93NUMPY\x01\x00" + bytes(90),
    "gzip": b"\x1f\x8b\x08" + bytes(90),
    "GGUF": b"GGUF" + bytes(90),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "pickle 2": b"\x80\x02}q\x00." + bytes(90),
    "pickle 4": b"\x80\x04\x95" + bytes(90),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(90),
    "text": b"import os\nos.system('true')\n",
    "JSON": b'{"model": 1}' * 10,
}


def framing() -> Iterator[tuple[str, bytes]]:
    sound = encode()
    for length in (0, 1, 7, 8, 9, 20, len(sound) - 1):
        yield f"the first {length} bytes", sound[:length]
    yield "one byte more", sound + b"\0"
    yield "zeros", bytes(200)
    for claim in (0, 1, 2, len(sound), len(sound) - 7, 2**31, 2**63, 2**64 - 1):
        yield f"a header of {claim} bytes", struct.pack("<Q", claim) + sound[8:]
    yield "a header after spaces", struct.pack("<Q", 1000) + b" " * 1000 + sound[8:]
    yield from FOREIGN.items()


def headers() -> Iterator[tuple[str, bytes]]:
    for head in (
        "{",
        "[]",
        "null",
        "1",
        '"a"',
        "{}",
        '{"a": NaN}',
        '{"__metadata__": {}',
        "{]",
    ):
        yield f"header {head}", framed(head.encode(), b"")
    yield "header of UTF-16", framed(json.dumps({}).encode("utf-16"), b"")
    yield "header with a broken letter", framed(b'{"\xff": 1}', b"")
    yield "deep lists", framed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")
    yield "deep dicts", framed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"")
    yield "a long number", framed(b'{"a": ' + b"9" * 100_000 + b"}", b"")
    whole = encode()
    head = whole[8 : 8 + int.from_bytes(whole[:8], "little")].strip()
    _, data = plain()
    again = json.dumps(plain()[0]["params.bias"])
    yield (
        "an array twice",
        framed(head[:-1] + f', "params.bias": {again}}}'.encode(), data),
    )
    yield "metadata twice", framed(head[:-1] + b', "__metadata__": {}}', data)
    twice = head.replace(b'"dtype": "F32"', b'"dtype": "F64", "dtype": "F32"', 1)
    yield "a dtype twice", framed(twice, data)
    for wrong in (None, 1, "a", [], {}, {"dtype": "F32"}):
        entries, _ = plain()
        yield f"the entry {wrong}", encode(entries=entries | {"params.bias": wrong})
    for field in ("dtype", "shape", "data_offsets"):
        yield (
            f"an entry without {field}",
            encode(entries=changed("params.bias", **{field: ...})),
        )
    yield "an entry with more", encode(entries=changed("params.bias", more=1))
    for wrong in (
        None,
        1,
        [],
        {},
        "",
        "F128",
        "BF16",
        "F8_E4M3",
        "f32",
        "float32",
        "O",
    ):
        yield f"dtype {wrong}", encode(entries=changed("params.bias", dtype=wrong))
    lengths = (
        None,
        3,
        "3",
        {},
        [None],
        ["3"],
        [3.0],
        [True],
        [-3],
        [[3]],
        [2**63],
        [2**64],
        [BIG],
    )
    for wrong in (
        *lengths,
        [3] + [1] * 64,
        [3, 2**62, 2**62],
        [0, 2**62, 2**62],
        [NAN],
    ):
        yield (
            f"shape {str(wrong)[:40]}",
            encode(entries=changed("params.bias", shape=wrong)),
        )
    places = (
        None,
        0,
        "0",
        {},
        [],
        [48],
        [48, 60, 60],
        ["48", "60"],
        [48.0, 60.0],
        [60, 48],
    )
    places = (
        *places,
        [-12, 0],
        [0, 12],
        [49, 61],
        [48, 2**63],
        [2**63, 2**63 + 12],
        [NAN, 1],
    )
    for wrong in (*places, [47, 59], [60, 72], [52, 64], [True, True]):
        yield (
            f"place {wrong}",
            encode(entries=changed("params.bias", data_offsets=wrong)),
        )
    empty = {"dtype": "F32", "shape": [2**61, 0, 2**61], "data_offsets": [0, 0]}
    yield (
        "an empty array too large",
        encode(entries=plain()[0] | {"params.bias": empty}),
    )


def metadata() -> Iterator[tuple[str, bytes]]:
    for wrong in (None, 1, [], "a"):
        head = json.dumps({"__metadata__": wrong, **plain()[0]}).encode()
        yield f"metadata {wrong}", framed(head, plain()[1])
    for name in ("agnostic_nn", "sha256"):
        for wrong in (..., None, 1, {}, []):
            yield f"{name} {wrong}", encode(metadata={name: wrong})
    for wrong in ("", "0" * 64, "é", "A" * 10**6):
        yield f"sha256 {wrong[:9]}", encode(metadata={"sha256": wrong})
    yield "half of Unicode", encode(text=json.dumps(DESCRIPTION) + "\ud800")


NAMES = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\a",
    "a\0b",
    "\x1b[2J",
    "é" * 100,
)


def arrays() -> Iterator[tuple[str, bytes]]:
    for name in (*NAMES, "params", "params.weight.0", "kept 0.0.weight", "n" * 10**5):
        yield (
            f"an array {name[:20]!r} more",
            encode(arrays=ARRAYS | {name: ("F32", [3])}),
        )
        renamed = {
            name if key == "params.bias" else key: v for key, v in ARRAYS.items()
        }
        yield f"an array called {name[:20]!r}", encode(arrays=renamed)
    yield (
        "an array of half of Unicode",
        encode(arrays=ARRAYS | {"\ud800": ("F32", [3])}),
    )
    for name in ARRAYS:
        yield (
            f"no {name}",
            encode(arrays={k: v for k, v in ARRAYS.items() if k != name}),
        )
    yield "no arrays", encode(arrays={})
    for wrong in (
        ("F32", [3, 4]),
        ("F32", [12]),
        ("F64", [4, 3]),
        ("I32", [4, 3]),
        ("F32", [0]),
    ):
        yield f"weight {wrong}", encode(arrays=ARRAYS | {"params.weight": wrong})
    for wrong in (("I64", []), ("F32", []), ("I32", [1]), ("BOOL", [])):
        yield f"step {wrong}", encode(arrays=ARRAYS | {"moments.step": wrong})


WRONG = (
    None,
    True,
    1.5,
    -1,
    "zz",
    [],
    {},
    NAN,
    math.inf,
    BIG,
    2**64,
    [[[[]]]],
    {"type": "Dense"},
)
ALLOWED = {  # of WRONG, by its text
    "keep_finite": ["True"],
    "notes": ["{}", "{'type': 'Dense'}"],
    "kept": ["[]"],
    "limits": ["None"],
    "longest": ["{}"],
}


def descriptions() -> Iterator[tuple[str, bytes]]:
    for text in (
        "",
        "{",
        "null",
        "[]",
        "1",
        '"a"',
        "{}",
        "\0",
        '{"format": 1, "format": 1}',
    ):
        yield f"description {text}", encode(text=text)
    for wrong in (..., None, True, 1.0, "1", 0, -1, 2, 99, BIG, NAN, []):
        message = {
            k: v for k, v in (DESCRIPTION | {"format": wrong}).items() if v is not ...
        }
        yield f"format {str(wrong)[:20]}", encode(message)
    for name in DESCRIPTION:
        optional = ("keep_finite", "limits", "longest", "notes", "kept", "format")
        if name in optional:
            continue  # an older file may lack them
        yield f"no {name}", encode({k: v for k, v in DESCRIPTION.items() if k != name})
    for name in (*DESCRIPTION, "fit", "best"):
        for wrong in WRONG:
            if name == "format" or str(wrong) in ALLOWED.get(name, ()):
                continue
            if (name in ("fit", "best") and not wrong) or (name, wrong) == (
                "fit",
                None,
            ):
                continue
            yield f"{name} {str(wrong)[:20]}", encode(DESCRIPTION | {name: wrong})
    for wrong in (
        [0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, None],
        [-1, 8, 20, True],
        [0, 0, 0, True, 1],
    ):
        yield f"open {wrong}", encode(DESCRIPTION | {"open": wrong})
    for wrong in ([9, 8, 2**60, True], [10**18, 0, 0, False], ["1", 1, 1, True]):
        yield f"open {wrong}", encode(DESCRIPTION | {"open": wrong})
    for wrong in (
        [-4],
        ["4"],
        [4.0],
        [True],
        [2**60],
        [BIG],
        {"x": [4]},
        [[4]],
        [4, 5],
        [5],
        4,
    ):
        yield f"shape {str(wrong)[:20]}", encode(DESCRIPTION | {"shape": wrong})
    for wrong in (["a"], ["a", "a"], [1], [None], [["a"]]):
        yield f"kept {wrong}", encode(DESCRIPTION | {"kept": wrong})
    deep = (
        json.dumps(DESCRIPTION)[:-1] + ', "more": ' + "[" * 50_000 + "]" * 50_000 + "}"
    )
    yield "a description of deep lists", encode(text=deep)
    dicts = (
        json.dumps(DESCRIPTION)[:-1]
        + ', "notes": '
        + '{"a":' * 20_000
        + "1"
        + "}" * 20_001
    )
    yield "notes of deep dicts", encode(text=dicts.replace('"notes": {}, ', "", 1))


def deep(kind, depth):
    inner = {"type": "ReLU"}
    for _ in range(depth):
        if kind == "Sequential":
            inner = {"type": kind, "layers": [inner]}
        else:
            inner = {"type": kind, "layer": inner}
    return inner


def models() -> Iterator[tuple[str, bytes]]:
    def model(config, **more):
        return encode(DESCRIPTION | {"model": config} | more)

    for width in (10**9, 2**62, 2**63, BIG, 0, -1, 1.5, True, "3", None, [3], {}):
        yield f"width {str(width)[:20]}", model(MODEL | {"width": width})
    for n in (10**6, 10**9, 2**62):
        yield (
            f"Embedding of {n}",
            model({"type": "Embedding", "num_embeddings": n, "width": n}),
        )
        yield f"LSTM of {n}", model({"type": "LSTM", "width": n})
        yield (
            f"LSTM {n} deep",
            model({"type": "LSTM", "width": 1, "depth": n}, shape=[4, 4]),
        )
        for inner in (
            {"type": "ReLU"},
            {"type": "Dropout", "rate": 0.5},
            MODEL | {"width": 4},
        ):
            config = {"type": "Repeat", "layer": inner, "count": n}
            yield f"{n} times {inner['type']}", model(config)
        conv = {"type": "Conv1D", "width": 3, "window": n}
        yield f"a window of {n}", model(conv, shape=[n, 3])
        orthogonal = MODEL | {
            "width": n,
            "initializer": {"type": "Orthogonal", "gain": 1.0},
        }
        yield f"Orthogonal of {n}", model(orthogonal)
        yield f"an input of {n}", model(MODEL, shape=[n])
        yield (
            f"positions {n}",
            model({"type": "PositionEmbedding", "length": n}, shape=[n, 4]),
        )
        pads = {"type": "ZeroPad", "padding": n}
        yield f"padding {n}", model(pads, shape=[4, 3])
    for count in (5_000, 50_000):
        many = {"type": "Sequential", "layers": [{"type": "ReLU"}] * count}
        yield f"{count} layers", model(many)
        nodes = [[f"n{i}", [{"type": "ReLU"}, "x"]] for i in range(count)]
        yield (
            f"{count} nodes",
            model({"type": "Graph", "nodes": nodes, "outputs": "n0"}),
        )
    for depth in (50, 100, 300, 450):
        for kind in ("Sequential", "Residual", "Recompute", "Freeze"):
            yield f"{kind} {depth} deep", model(deep(kind, depth))
    inside = {
        name.replace("params", "params.1"): array for name, array in ARRAYS.items()
    }
    for name in ("Layer", "Elementwise"):
        layers = [{"type": name}, MODEL]
        config = DESCRIPTION | {"model": {"type": "Sequential", "layers": layers}}
        yield f"{name} in a Sequential", encode(config, arrays=inside)
    names = (
        "Popen",
        "os.system",
        "builtins.eval",
        "Layer",
        "Elementwise",
        "Lambda",
        "Rule",
        "",
    )
    for name in (
        *names,
        "mean_squared_error",
        "outline",
        "Optimizer",
        "Loss",
        "kinds",
        "drawn",
    ):
        yield f"type {name}", model({"type": name})
        yield f"function {name}", model({"function": name})
    for wrong in (None, 1, ["Dense"], {"type": "Dense"}, [], {}, True):
        yield f"type {wrong}", model({"type": wrong})
        yield f"function {wrong}", model({"function": wrong})
        yield f"partial {wrong}", model({"partial": wrong})
    yield "a model of three numbers", model([1, 2, 3])
    yield "an unknown argument", model(MODEL | {"height": 3})
    yield "a dict", model({"dict": {"a": 1}})
    yield "two kinds at once", model({"function": "huber", "dict": {}})
    yield "an optimizer for a model", model({"type": "SGD", "rate": 0.1})
    yield "a loss for a model", model({"function": "mean_squared_error"})
    cyclic = {
        "type": "Graph",
        "nodes": [["a", [{"type": "ReLU"}, "a"]]],
        "outputs": "a",
    }
    yield "a cyclic graph", model(cyclic)
    yield "nodes of numbers", model({"type": "Graph", "nodes": [1, 2], "outputs": "a"})
    yield "layers of numbers", model({"type": "Sequential", "layers": [1, 2]})
    yield "layers as a number", model({"type": "Sequential", "layers": 3})
    yield "a long text", model({"type": "Graph", "outputs": "a" * 10**6, "nodes": []})


def losses() -> Iterator[tuple[str, bytes]]:
    def loss(config):
        return encode(DESCRIPTION | {"loss": config})

    square = {"function": "mean_squared_error"}
    yield "a layer for a loss", loss({"type": "ReLU"})
    yield "an optimizer for a loss", loss({"type": "SGD", "rate": 0.1})
    yield "a schedule for a loss", loss({"function": "Cosine"})
    yield "a loss with an unknown option", loss({"partial": square, "command": "ls"})
    yield "a loss with its data", loss({"partial": {"type": "ReLU"}, "x": 1})
    yield (
        "a loss of a loss of nothing",
        loss({"partial": {"partial": {"function": "eval"}}}),
    )
    for rate in (
        NAN,
        math.inf,
        -1,
        0,
        "0.1",
        None,
        [],
        {},
        True,
        BIG,
        {"function": "huber"},
    ):
        config = {"type": "SGD", "rate": rate}
        yield f"rate {str(rate)[:20]}", encode(DESCRIPTION | {"optimizer": config})
    for wrong in (
        {"type": "ReLU"},
        square,
        {"type": "Adam", "rate": 0.1},
        {"type": "Scaled"},
    ):
        yield f"optimizer {wrong}", encode(DESCRIPTION | {"optimizer": wrong})
    average = {"type": "SGD", "rate": 0.1}
    for _ in range(300):
        average = {"type": "Average", "optimizer": average}
    yield "300 averages", encode(DESCRIPTION | {"optimizer": average})


def floods() -> Iterator[tuple[str, bytes]]:
    """Many arrays, which take long to make: not among the tests."""
    entry = json.dumps({"dtype": "F32", "shape": [], "data_offsets": [0, 0]})
    keys = ", ".join(f'"k{i}": {entry}' for i in range(100_000))
    yield "100,000 arrays", framed(f"{{{keys}}}".encode(), b"")
    sound = {f"k{i}": ("F32", [1]) for i in range(100_000)}
    yield "100,000 sound arrays", encode(arrays=sound)
    yield (
        "10,000 sound arrays",
        encode(arrays={f"k{i}": ("F32", [1]) for i in range(10_000)}),
    )
    yield (
        "16,000 larger ones",
        encode(arrays={f"k{i}": ("F32", [256]) for i in range(16_000)}),
    )


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that would become large, or take long."""
    parts = {
        "lists": "[],",
        "dicts": "{},",
        "numbers": "1000,",
        "pairs": '{"a":1},',
    }
    for name, part in parts.items():
        text = json.dumps(DESCRIPTION)[:-1] + ', "more": [' + part * 400_000 + "0]}"
        yield f"many {name}", encode(text=text)
        yield (
            f"{name} in a header",
            framed(('{"a": [' + part * 400_000 + "0]}").encode(), b""),
        )
    wide = (
        json.dumps(DESCRIPTION)[:-1]
        + ', "more": "\\ud83d\\ude00'
        + "a" * 4 * 10**6
        + '"}'
    )
    yield "a wide text", encode(text=wide)
    yield (
        "a wide header",
        framed(b'{"a": "\xf0\x9f\x98\x80' + b"a" * 4 * 10**6 + b'"}', b""),
    )
    yield (
        "a shape of many axes",
        encode(entries=changed("params.bias", shape=[1] * 10**6)),
    )
    yield "one value in 60 digits", encode(DESCRIPTION | {"seed": int("9" * 4000)})


KINDS = (framing, headers, metadata, arrays, descriptions, models, losses, bombs)


def special(folder) -> Iterator[tuple[str, str]]:
    """Paths that are not plain files, or too large to be read."""
    import socket

    def named(name):
        return os.path.join(folder, name)

    os.mkfifo(named("pipe"))
    os.mkdir(named("folder"))
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(folder):
        # by its name: the whole path may be too long for a socket
        listening.bind("socket")
    os.symlink(named("pipe"), named("link"))
    for name in ("pipe", "folder", "socket", "link"):
        yield f"a {name}", named(name)
    yield "zeros without end", "/dev/zero"
    yield "nothing", "/dev/null"
    sound = encode()
    for name, begin in (
        ("sparse", sound),
        ("a sparse header", struct.pack("<Q", 2**33 - 8) + b"{"),
    ):
        with open(named(name), "wb") as file:
            file.write(begin)
            file.truncate(2**33)
        yield name, named(name)
    width = 2**29
    arrays = {"params.weight": ("F32", [4, width]), "params.bias": ("F32", [width])}
    head, place = {}, 0
    for key, (code, shape) in arrays.items():
        head[key] = {
            "dtype": code,
            "shape": shape,
            "data_offsets": [place, place + nbytes(code, shape)],
        }
        place += nbytes(code, shape)
    head["__metadata__"] = {"agnostic_nn": json.dumps(DESCRIPTION), "sha256": "0" * 64}
    with open(named("large"), "wb") as file:
        file.write(framed(json.dumps(head).encode(), b""))
        file.truncate(file.tell() + place)
    yield "a sparse file of another model", named("large")


def _judged(path, seconds=10):
    """Load a file in a separate process; return the outcome, seconds and bytes."""
    import resource
    import signal
    import time

    import agnostic_nn as nn

    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
        signal.alarm(seconds)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        try:
            nn.Trainer.load(path, "numpy")
            outcome = "loaded"
        except nn.CheckpointError:
            outcome = "CheckpointError"
        except BaseException as error:
            outcome = type(error).__name__
        took = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, json.dumps([outcome, took, peak * 1024]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else ["killed or hung", float(seconds), 0]


def main() -> None:
    import collections
    import tempfile

    import agnostic_nn as nn

    warm = nn.Trainer(
        nn.Dense(3), nn.mean_squared_error, nn.SGD(0.1), backend="numpy", shape=(4,)
    )
    outcomes, kinds = collections.Counter(), collections.Counter()
    slowest, largest, count = (0.0, ""), (0, ""), 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        warm.save(path)
        nn.Trainer.load(path, "numpy")

        def files():
            for kind in (*KINDS, floods):
                for name, data in kind():
                    with open(path, "wb") as file:
                        file.write(data)
                    yield kind.__name__, name, path
            yield from (("special", name, result) for name, result in special(folder))

        for kind, name, result in files():
            outcome, took, peak = _judged(result)
            size = os.path.getsize(result)
            count += 1
            over = max(0, peak - 2 * size)
            fine = outcome == "CheckpointError" and took <= 1.0 and over <= 2**24
            outcomes[outcome] += 1
            kinds[kind, fine] += 1
            slowest, largest = max(slowest, (took, name)), max(largest, (over, name))
            if not fine:
                print(
                    f"{kind}: {name}: {outcome}, {took:.2f} s, {over / 2**20:.1f} MB "
                    "over"
                )
    print(dict(outcomes))
    print(
        {
            kind: f"{kinds[kind, True]} of {kinds[kind, True] + kinds[kind, False]}"
            for kind, _ in kinds
        }
    )
    print(
        f"{sum(n for (_, fine), n in kinds.items() if fine)} of {count} are refused as "
        "documented"
    )
    print(f"slowest: {slowest[0]:.2f} s ({slowest[1]})")
    print(
        f"most memory beyond twice the file: {largest[0] / 2**20:.1f} MB ({largest[1]})"
    )


if __name__ == "__main__":
    main()
