"""ResNet-20 on CIFAR-10 from random weights: 30 epochs in float, then QAT of 15.

Run: pmsm train recipes/resnet20_cifar10_scratch.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar10",
    network="resnet20",
    pretraining=Phase(epochs=30, lr=0.1, weight_decay=1e-4, warmup_epochs=1.0),
    qat=Phase(epochs=15, lr=0.02, weight_decay=1e-4, warmup_epochs=0.5),
    distill=0.5,
    budget="45 epochs at about 132 s on one CPU core (results/recipes.jsonl).",
)
