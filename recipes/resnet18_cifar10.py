"""ResNet-18 with the stem for 32x32 on CIFAR-10 from random weights: 100 epochs in float, then QAT of 50.

Run: pmsm train recipes/resnet18_cifar10.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar10",
    network="resnet18_cifar",
    pretraining=Phase(epochs=100, lr=0.1, warmup_epochs=2.0, augment="crop-flip+cutout"),
    qat=Phase(epochs=50, lr=0.02, warmup_epochs=1.0),
    progressive=((0, 33), (10, 17), (20, 9)),
    distill=0.5,
    budget="for a GPU; not measured.",
)
