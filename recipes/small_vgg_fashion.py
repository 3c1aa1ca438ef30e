"""A slim VGG on Fashion-MNIST from random weights: 10 epochs in float, then QAT of 5; minutes on a CPU.

Run: pmsm train recipes/small_vgg_fashion.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="fashion-mnist",
    network="small_vgg",
    pretraining=Phase(epochs=10, lr=0.1, augment="shift", warmup_epochs=1.0),
    qat=Phase(epochs=5, lr=0.02, augment="shift", warmup_epochs=0.5),
    budget="for a CPU; not measured.",
)
