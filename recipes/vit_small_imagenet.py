"""ViT-S/16 on ImageNet from timm's float weights: QAT of 10 epochs, taught by the float network.

Run: pmsm train recipes/vit_small_imagenet.py --data DIR --weights DIR [--levels 9|17|33]
DIR holds train/n*/ and val/n*/. The weights are timm's vit_small_patch16_224.augreg_in21k_ft_in1k, its
model.safetensors under that name.
"""

from pmsm.study.recipe import Phase, Recipe

RECIPE = Recipe(
    data="imagenet",
    network="vit_small_patch16_224",
    weights="vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors",
    mean=(0.5, 0.5, 0.5),  # those of the weights
    std=(0.5, 0.5, 0.5),
    levels=17,
    qat=Phase(
        epochs=10, lr=1e-4, optimizer="adamw", weight_decay=0.05, warmup_epochs=0.5, layer_decay=0.75,
        clip_norm=1.0, ema=0.9999, batch_size=512, augment="crop-flip",
    ),
    progressive=((0, 33), (3, 17)),
    distill=0.9,
    calibration_images=512,
    test_batch=50,
    timesteps=(1, 2, 4, 8),
    budget="for several GPUs, torchrun --nproc-per-node=N --no-python pmsm train ...; not measured.",
)  # fmt: skip
