"""VGG-16 on CIFAR-100 from random weights: 150 epochs in float, then QAT of 60 in falling levels.

Run: pmsm train recipes/vgg16_cifar100.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar100",
    network="vgg16",
    pretraining=Phase(epochs=150, lr=0.05, warmup_epochs=2.0, label_smoothing=0.1),
    qat=Phase(epochs=60, lr=0.01, warmup_epochs=1.0),
    progressive=((0, 33), (10, 17), (20, 9)),
    distill=0.5,
    budget="for a GPU; not measured.",
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)
