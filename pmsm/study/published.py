"""What others have published for one or a few timesteps: figures as data, each with its source."""

from pmsm.study.entries import Entry

QCFS_SOURCE = "Bu et al., ICLR 2022, arXiv:2303.04347"
CS_QCFS_SOURCE = "Yang et al., CS-QCFS, Neural Networks"
SRP_SOURCE = "Hao et al., AAAI 2023, arXiv:2302.02091"
PMSM_SOURCE = "arXiv:2508.14520, abstract"
SRP_NOTE = "spends 4 more timesteps that T does not count"


def _entry(
    data: str, network: str, method: str, timesteps: int, accuracy: float, source: str, note: str = ""
) -> Entry:
    return Entry(
        data=data, network=network, method=method, levels=None, timesteps=timesteps, accuracy=accuracy,
        source=source, published=True, note=note,
    )  # fmt: skip


# Top-1 in percent, as printed by the authors; not measured here.
PUBLISHED: tuple[Entry, ...] = (
    _entry("CIFAR-10", "ViT-S", "PMSM", 1, 98.5, PMSM_SOURCE),
    _entry("CIFAR-100", "ViT-S", "PMSM", 1, 89.3, PMSM_SOURCE),
    _entry("ImageNet", "ViT-S", "PMSM", 1, 81.6, PMSM_SOURCE),
    _entry("CIFAR-10", "VGG-16", "CS-QCFS", 1, 95.86, CS_QCFS_SOURCE),
    _entry("CIFAR-100", "VGG-16", "CS-QCFS", 1, 74.83, CS_QCFS_SOURCE),
    _entry("CIFAR-100", "ResNet-20", "SRP", 1, 46.48, SRP_SOURCE, SRP_NOTE),
    _entry("CIFAR-10", "VGG-16", "QCFS", 2, 91.18, QCFS_SOURCE),
    _entry("CIFAR-100", "VGG-16", "QCFS", 2, 63.79, QCFS_SOURCE),
    _entry("CIFAR-10", "ResNet-20", "QCFS", 2, 73.20, QCFS_SOURCE),
    _entry("CIFAR-100", "ResNet-20", "QCFS", 2, 19.96, QCFS_SOURCE),
)
