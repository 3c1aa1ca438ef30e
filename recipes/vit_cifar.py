"""A slim vision transformer on CIFAR-10 from random weights: 200 epochs in float, then QAT of 60.

Run: pmsm train recipes/vit_cifar.py --data DIR [--levels 5|9|17]
Width 192, nine blocks, patches of 4x4. Attention is left to the default method; its teacher is the float
network.
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar10",
    network="vit_tiny_patch4_32",
    network_options=(("drop_path", 0.1),),
    pretraining=Phase(
        epochs=200, lr=1e-3, optimizer="adamw", weight_decay=0.05, warmup_epochs=10.0, clip_norm=1.0,
        ema=0.9995, label_smoothing=0.1, augment="crop-flip+autoaugment+mixup",
    ),
    qat=Phase(
        epochs=60, lr=3e-4, optimizer="adamw", weight_decay=0.05, warmup_epochs=2.0, clip_norm=1.0, ema=0.999,
        augment="crop-flip+autoaugment",
    ),
    progressive=((0, 33), (10, 17), (20, 9)),
    distill=0.9,
    budget="for a GPU; not measured.",
)  # fmt: skip
