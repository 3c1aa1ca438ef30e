"""ViT-S/16 on CIFAR-100 at 224x224, fine-tuned from timm's weights: 10 epochs in float, then QAT of 20.

Run: pmsm train recipes/vit_small_cifar100.py --data DIR --weights DIR [--levels 5|9|17]
The weights are timm's vit_small_patch16_224.augreg_in21k_ft_in1k, its model.safetensors under that name.
"""

from dataclasses import replace
from pathlib import Path

from pmsm.study.recipe import read_recipe

CIFAR10 = read_recipe(Path(__file__).with_name("vit_small_cifar10.py"))

RECIPE = replace(
    CIFAR10,
    data="cifar100",
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)
