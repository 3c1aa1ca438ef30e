"""Does a vision transformer convert quickly, and does its SNN cost what its QANN costs? ViT-S/16 at 224 x
224.

Run: .venv/bin/python benchmarks/vit.py [--repeats 7] [--out results/vit.json]
Random weights, PMSM(levels=9), one thread. Time and peak memory of quantize + calibrate (one batch of 8) +
convert, of the whole process; then the forward pass of the SNN at T=1 (spikes counted) against the QANN's,
interleaved in random order.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from cost import interleave, quotient

from pmsm.ann.models.vit import vit_small_patch16_224
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import verify
from pmsm.study.demo import environment


def main() -> None:
    """Print and, if asked, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ann, x = vit_small_patch16_224().eval(), torch.randn(options.batch, 3, 224, 224)
    start = time.perf_counter()
    qann = calibrate(quantize(ann, PMSM(levels=9), x[:1]), x)
    snn = convert(qann)
    seconds = time.perf_counter() - start
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = verify(qann, snn, x)

    def plain() -> object:
        """The quantized network as it is."""
        with torch.no_grad():
            return qann(x)

    times, _ = interleave({"qann": plain, "snn": lambda: simulate(snn, x, 1)}, options.repeats)
    median, low, high = quotient(times, "snn", "qann")
    print(f"quantize + calibrate + convert: {seconds:.1f} s, peak {peak_bytes / 2**30:.2f} GiB; {found}")
    print(
        f"SNN at T=1 / QANN forward: {median:.3f}, quartiles {low:.3f} to {high:.3f}, n = {options.repeats}"
    )
    if options.out:
        row = {
            "benchmark": "vit", "network": "vit_small_patch16_224", "batch": options.batch,
            "n": options.repeats, "seconds": seconds, "peak_bytes": peak_bytes, "codes": found.codes,
            "different": found.different,
            "ratio": {"median": median, "quartiles": [low, high]}, "environment": environment(0),
        }  # fmt: skip
        options.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
