"""The integer network as one C header: constant arrays and a table of operations, for any C99 compiler."""

from pathlib import Path
from typing import Any

import numpy as np

from pmsm.errors import ConversionError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.qann.program import KINDS, Operation
from pmsm.snn.integer import integer_program

TYPES = {"int8": "int8_t", "int32": "int32_t", "float64": "double"}
PAIRS = ("kernel", "stride", "padding", "dilation")
NUMBERS = ("groups", "quant_min", "quant_max", "least", "most", "side")
ARRAYS = {"weight": "int8_t", "bias": "int32_t", "worth": "int32_t", "index": "int32_t",
          "threshold": "int32_t", "start": "int32_t"}  # fmt: skip
"""Arrays of operations -> their type in C; a pointer is null where an operation has none of the name."""

DECLARATIONS = f"""\
#ifndef PMSM_NETWORK_H
#define PMSM_NETWORK_H
#include <stdint.h>

enum pmsm_kind {{ {", ".join(f"PMSM_{kind.upper()}" for kind in KINDS)} }};

struct pmsm_operation {{
    enum pmsm_kind kind;
    int input_count, inputs[{{most}}]; /* numbers of the operations that it reads */
    int channels, height, width;  /* of its result, one sample, channels outermost */
    {" ".join(f"int {name}[2];" for name in PAIRS)}
    int {", ".join(NUMBERS)};
    {" ".join(f"const {kind} *{name};" for name, kind in ARRAYS.items())}
}};
"""


def export_c(network: Network, path: str | Path) -> None:
    """Write a network from `quantize_weights`, or the SNN that `convert` made of it, as a C99 header.

    It holds what the file of `export_npz` holds: `pmsm_operations`, in the order of execution, the arrays
    that they point to, `pmsm_input_step`, and `pmsm_output_unit`, what one count of each output is worth.
    docs/run_network.c runs it.

    Raises:
        QuantizationError: as `integer`.
        ConversionError: the file cannot be written.
    """
    program = integer_program(network)
    numbers = {operation.name: i for i, operation in enumerate(program.operations)}
    most = max(len(operation.inputs) for operation in program.operations)
    lines = ["/* A spiking network on whole numbers, written by pmsm. */"]
    lines.append(DECLARATIONS.replace("{most}", str(most)))
    for i, operation in enumerate(program.operations):
        lines += [_array(f"pmsm_{key}_{i}", array) for key, array in operation.arrays.items()]
    rows = [_row(i, operation, numbers) for i, operation in enumerate(program.operations)]
    lines += ["static const struct pmsm_operation pmsm_operations[] = {", *rows, "};"]
    lines.append(f"enum {{ PMSM_OPERATIONS = {len(rows)} }};")
    step = np.float32(program.operations[0].settings["step"])
    lines.append(f"static const float pmsm_input_step = {float(step).hex()}f;")
    lines.append(_array("pmsm_output_unit", program.output_unit))
    lines.append("#endif\n")
    write_atomic(path, "\n".join(lines), ConversionError)


def _array(name: str, array: np.ndarray) -> str:
    values = [float(x).hex() if array.dtype.kind == "f" else str(x) for x in array.ravel()]
    rows = [", ".join(values[i : i + 16]) for i in range(0, len(values), 16)]
    body = ",\n    ".join(rows)
    return f"static const {TYPES[str(array.dtype)]} {name}[{array.size}] = {{\n    {body}}};"


def _row(number: int, operation: Operation, numbers: dict[str, int]) -> str:
    """One entry of the table, with names; what is not named is zero."""
    shape = operation.shape
    height, width = shape[1:] if len(shape) == 3 else (1, int(np.prod(shape[1:])))
    fields: dict[str, Any] = {
        "kind": f"PMSM_{operation.kind.upper()}",
        "input_count": len(operation.inputs),
        "channels": shape[0],
        "height": height,
        "width": width,
    }
    if operation.inputs:
        fields["inputs"] = _braces(numbers[name] for name in operation.inputs)
    fields |= {name: _braces(operation.settings[name]) for name in PAIRS if name in operation.settings}
    if operation.kind == "conv":
        fields["kernel"] = _braces(operation.arrays["weight"].shape[2:])
    fields |= {name: operation.settings[name] for name in NUMBERS if name in operation.settings}
    fields |= {name: f"pmsm_{name}_{number}" for name in operation.arrays}
    inside = ", ".join(f".{name} = {value}" for name, value in fields.items())
    return f"    {{{inside}}}, /* {number}: {operation.kind} */"


def _braces(values: Any) -> str:
    return "{" + ", ".join(map(str, values)) + "}"
