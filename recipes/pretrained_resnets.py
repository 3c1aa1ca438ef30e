"""Do published weights give their published accuracy here? ResNet-20 to 56 on CIFAR-10, float32.

Run: .venv/bin/python recipes/pretrained_resnets.py --data CIFAR10_FOLDER --weights WEIGHTS_FOLDER
The folder of weights holds akamaster_resnet{20,32,44,56}_cifar10.safetensors, with the constants that
normalize the images in the metadata. Appends one line per network to results/pretrained_resnets.jsonl and
prints the table. The author of the weights kept no validation images apart (README of SOURCE).
"""

import json
from pathlib import Path

import torch
from pretrained import SOURCE, arguments, network, pictures

from pmsm.ann.data import Batches
from pmsm.ann.train import evaluate
from pmsm.study.demo import environment

# Top-1 in %: 100 minus the test errors 8.27, 7.37, 6.90 and 6.61 in the table of SOURCE's README.
PUBLISHED = {"resnet20": 91.73, "resnet32": 92.63, "resnet44": 93.10, "resnet56": 93.39}
RESULTS = Path(__file__).parent.parent / "results" / "pretrained_resnets.jsonl"


def main() -> None:
    """Every network, one line each."""
    parser = arguments(__doc__, RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CIFAR-10 test pictures, accuracy in %\n{'network':10s} measured published difference")
    for name, published in PUBLISHED.items():
        _, test = pictures(options.data, options.weights, name)
        accuracy = evaluate(network(name, options.weights), Batches(test, 250))
        row = {"recipe": "pretrained_resnets", "network": name, "data": test.name, "images": len(test),
               "accuracy": accuracy, "published": published, "source": SOURCE}  # fmt: skip
        print(f"{name:10s} {accuracy:8.2f} {published:9.2f} {accuracy - published:+10.2f}", flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


if __name__ == "__main__":
    main()
