"""ResNet-20 on CIFAR-10 from published float weights (91.73 %): QAT of 16 epochs, taught by the float one.

Run: pmsm train recipes/resnet20_cifar10.py --data DIR --weights DIR [--levels 5|9|17]
     [--method pmsm|qcfs|stbif]
The weights are akamaster/pytorch_resnet_cifar10's, converted to safetensors.
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar10",
    network="resnet20",
    weights="akamaster_resnet20_cifar10.safetensors",
    mean=(0.485, 0.456, 0.406),  # those of the weights, from their README
    std=(0.229, 0.224, 0.225),
    qat=Phase(epochs=16, lr=0.01, weight_decay=1e-4, warmup_epochs=1.0),  # the weights' own decay
    distill=0.5,
    temperature=4.0,
    budget="132 s per epoch, the teacher included, on one CPU core (results/recipes.jsonl).",
)
