"""ResNets for 32x32 images in PyTorch, with timm's DropBlock, and their training step. For `training_step.py`."""

from collections.abc import Callable, Sequence

import timm
import torch
from timm.layers import DropBlock2d  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Residual block with two 3x3 convolutions and an identity shortcut."""

    def __init__(self, in_features: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.stride, self.padding = stride, (features - in_features) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(y + x, inplace=True)


class ResNet20(nn.Module):
    """ResNet-20 with DropBlock after the second and third stage."""

    def __init__(self, drop: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        stages, in_features = [], 16
        for features, stride, layer in zip((16, 32, 64), (1, 2, 2), (nn.Identity(), *drop), strict=True):
            blocks = [BasicBlock(in_features, features, stride), *(BasicBlock(features, features, 1) for _ in range(2))]
            stages += [*blocks, layer]
            in_features = features
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def resnet50(drop: Sequence[nn.Module]) -> nn.Module:
    """Returns timm's ResNet-50 with a 3x3 stem, and DropBlock after the third and fourth stage."""
    model = timm.create_model("resnet50", num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    model.layer3, model.layer4 = nn.Sequential(model.layer3, drop[0]), nn.Sequential(model.layer4, drop[1])
    return model


def make_training_step(name: str, batch_size: int, drop_rate: float) -> Callable[[], None]:
    """Returns a function that runs one training step on a fixed batch, in channels-last layout."""
    drop = [DropBlock2d(drop_rate, 7) if drop_rate else nn.Identity() for _ in range(2)]
    model = {"resnet20": ResNet20, "resnet50": resnet50}[name](drop).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
