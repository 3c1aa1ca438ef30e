"""ResNet-20 on CIFAR-100 from random weights: 60 epochs in float, then QAT of 30.

Run: pmsm train recipes/resnet20_cifar100.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar100",
    network="resnet20",
    pretraining=Phase(epochs=60, lr=0.1, warmup_epochs=1.0),
    qat=Phase(epochs=30, lr=0.02, warmup_epochs=1.0),
    distill=0.5,
    budget="90 epochs at about 132 s on one CPU core (results/recipes.jsonl).",
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)
