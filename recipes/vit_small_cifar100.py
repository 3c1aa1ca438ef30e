"""ViT-S/16 on CIFAR-100 at 224x224, fine-tuned from timm's weights: 10 epochs in float, then QAT of 20.

Run: pmsm train recipes/vit_small_cifar100.py --data DIR --weights DIR [--levels 5|9|17]
The weights are timm's vit_small_patch16_224.augreg_in21k_ft_in1k, its model.safetensors under that name.
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="cifar100",
    network="vit_small_patch16_224",
    weights="vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors",
    new_head="head",
    size=224,
    mean=(0.5, 0.5, 0.5),  # those of the weights
    std=(0.5, 0.5, 0.5),
    pretraining=Phase(
        epochs=10, lr=3e-4, optimizer="adamw", weight_decay=0.05, warmup_epochs=1.0, layer_decay=0.75,
        clip_norm=1.0, label_smoothing=0.1,
    ),
    qat=Phase(
        epochs=20, lr=1e-4, optimizer="adamw", weight_decay=0.05, warmup_epochs=1.0, layer_decay=0.75,
        clip_norm=1.0, ema=0.999,
    ),
    progressive=((0, 33), (4, 17), (8, 9)),
    distill=0.9,
    calibration_images=256,
    test_batch=50,
    timesteps=(1, 2, 4, 8),
    budget="for a GPU; not measured.",
    note="own split where the data are parquet files: 500 training, 100 test pictures per class",
)  # fmt: skip
