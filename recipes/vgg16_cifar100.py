"""VGG-16 on CIFAR-100 from random weights: 150 epochs in float, then QAT of 60 in falling levels.

Run: pmsm train recipes/vgg16_cifar100.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from dataclasses import replace
from pathlib import Path

from pmsm.study.recipe import read_recipe

CIFAR10 = read_recipe(Path(__file__).with_name("vgg16_cifar10.py"))

RECIPE = replace(
    CIFAR10,
    data="cifar100",
    pretraining=replace(CIFAR10.pretraining, epochs=150),
    qat=replace(CIFAR10.qat, epochs=60),
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)
