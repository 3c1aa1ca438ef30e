"""ResNet-18 with the stem for 32x32 on CIFAR-100 from random weights: 100 epochs in float, then QAT of 50.

Run: pmsm train recipes/resnet18_cifar100.py --data DIR [--levels 5|9|17] [--method pmsm|qcfs|stbif]
"""

from dataclasses import replace
from pathlib import Path

from pmsm.study.recipe import read_recipe

CIFAR10 = read_recipe(Path(__file__).with_name("resnet18_cifar10.py"))

RECIPE = replace(
    CIFAR10,
    data="cifar100",
    pretraining=replace(CIFAR10.pretraining, augment="crop-flip+cutout=0.25"),
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)
