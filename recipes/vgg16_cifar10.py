"""VGG-16 on CIFAR-10 from random weights: 100 epochs in float, then QAT of 50 in falling levels.

Run: pmsm train recipes/vgg16_cifar10.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar10",
    network="vgg16",
    pretraining=Phase(epochs=100, lr=0.05, warmup_epochs=2.0, label_smoothing=0.1),
    qat=Phase(epochs=50, lr=0.01, warmup_epochs=1.0),
    progressive=((0, 33), (10, 17), (20, 9)),
    distill=0.5,
    budget="for a GPU; not measured.",
)
