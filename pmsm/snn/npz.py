"""The integer network as one .npz file: plain arrays and a table of contents, for readers without torch."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pmsm.errors import ConversionError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.snn.integer import integer_program

FORMAT = "pmsm-integer"
VERSION = 1


def export_npz(network: Network, path: str | Path) -> None:
    """Write a network from `quantize_weights`, or the SNN that `convert` made of it, as a .npz file.

    It holds int8 weights, int32 biases, thresholds and initial potentials, and int32 connectivity, as arrays
    called "<number of the operation>.<name>", and `operations`, JSON: a list with kind, name, inputs, shape
    per sample and settings of each, in the order of execution; `pmsm.qann.program.KINDS` says what each kind
    computes. `output_unit` is what one count of the output is worth. docs/read_npz.py runs such a file with
    NumPy alone.

    Raises:
        QuantizationError: as `integer`.
        ConversionError: the file cannot be written.
    """
    program = integer_program(network)
    table: list[dict] = []
    arrays: dict[str, Any] = {"output_unit": program.output_unit}
    for number, operation in enumerate(program.operations):
        table.append({
            "kind": operation.kind, "name": operation.name, "inputs": operation.inputs,
            "shape": operation.shape, "path": operation.path, **operation.settings,
        })  # fmt: skip
        arrays |= {f"{number}.{key}": array for key, array in operation.arrays.items()}
    header = json.dumps({"format": FORMAT, "version": VERSION, "operations": table})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, operations=np.array(header), **arrays)
    write_atomic(path, buffer.getvalue(), ConversionError)
