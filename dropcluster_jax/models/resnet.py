"""ResNets (He et al. 2016) in Flax Linen: the ImageNet family with two stems, and the small ones for CIFAR.

A network is its blocks and five places, `stem` and `stage1` .. `stage4`, where a drop layer of
`dropcluster_jax.linen` may stand. How it is trained is not known here.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from dropcluster_jax.linen import DropCluster
from dropcluster_jax.masking.common import Rate

# Weights as in the paper: He et al. 2015, for rectifiers.
_conv = functools.partial(
    nn.Conv, use_bias=False, kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal")
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    shortcut: Literal["projection", "identity"]
    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """The block's output: smaller by the strides, `features` wide."""
        strides = (self.strides, self.strides)
        y = _conv(self.features, (3, 3), strides, padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = _conv(self.features, (3, 3), padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(self, x, self.features))


class BottleneckBlock(nn.Module):
    """A 1x1, a 3x3 (which strides) and a 1x1 convolution, four times as wide, beside a shortcut."""

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    shortcut: Literal["projection", "identity"]
    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """The block's output: smaller by the strides, `4 * features` wide."""
        strides, wide = (self.strides, self.strides), self.features * self.expansion
        y = _conv(self.features, (1, 1), dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = _conv(self.features, (3, 3), strides, padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = _conv(wide, (1, 1), dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(self, x, wide))


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, features: int) -> Array:
    """`x` itself where the shape allows, else a 1x1 convolution, or strides and zeros without any parameter."""
    if x.shape[-1] == features and block.strides == 1:
        return x
    if block.shortcut == "identity":  # option A of He et al. 2016, section 4.2
        extra = features - x.shape[-1]
        x = x[:, :: block.strides, :: block.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
    x = _conv(features, (1, 1), (block.strides, block.strides), dtype=block.dtype, name="shortcut_conv")(x)
    return block.norm(name="shortcut_norm")(x)


class ResNet(nn.Module):
    """A residual network; `resnet50` and its siblings make one.

    With blocks of three convolutions the 3x3 one strides ("ResNet v1.5").

    Attributes:
        stage_sizes: the number of blocks in each stage.
        block: `BasicBlock` or `BottleneckBlock`.
        num_classes: the number of logits, at least 1.
        width: the stem's and the first stage's features; each later stage has twice as many.
        stem: `"imagenet"`, a 7x7 convolution of stride 2 and a max-pool, or `"cifar"`, a 3x3 one.
        shortcut: `"projection"` or `"identity"` where a block changes the shape.
        drop: drop layers by place: `stem` (before the pool), `stage1`, ... (after the stage's last block). A layer
            with a rate of its own keeps it; the others take the call's.
        dtype: the type of activations; parameters, statistics and logits are float32.
        axis_name: a mapped axis over which BatchNorm averages its statistics, if any.
        remat: whether blocks are computed again in the backward pass instead of kept: less memory, more operations.

    Raises:
        ValueError: an unknown place, or an unknown stem.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385: table 1, and for the
        small ones section 4.2.
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, section 5.1: the
        3x3 convolution strides, and the last scale of each block begins at 0.

    Example:
        >>> import jax
        >>> from dropcluster_jax import KMeans
        >>> model = resnet20(drop={"stage2": DropCluster(KMeans(cluster_size=16))})
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        >>> shapes["clusters"]["drop_stage2"]["labels"].shape, shapes["clusters"]["drop_stage2"]["sizes"].shape
        ((16, 16, 1), (16, 1))
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[BottleneckBlock]
    num_classes: int
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "identity"] = "projection"
    drop: Mapping[str, nn.Module] = FrozenDict()
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be 'imagenet' or 'cifar', got {self.stem!r}")
        unknown = sorted(set(self.drop) - set(self.places))
        if unknown:
            raise ValueError(f"drop has the unknown place {unknown[0]!r}; places are {', '.join(self.places)}")
        self.drop = FrozenDict(self.drop)  # hashable, so that equal networks are equal
        super().__post_init__()

    @property
    def places(self) -> tuple[str, ...]:
        """Where a drop layer may stand: `("stem", "stage1", ...)`, a place for each stage."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.stage_sizes))))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        train: bool = False,
        rate: Rate | Mapping[str, Rate] = 0.0,
        deterministic: bool | None = None,
        update_clusters: bool = False,
    ) -> Float[Array, "batch classes"]:
        """The logits.

        Args:
            x: normalized images, `(batch, height, width, channels)`.
            train: whether BatchNorm uses and updates the batch's statistics.
            rate: the rate of the drop layers that have none of their own, in [0, 1]: one for all, or by place.
            deterministic: whether nothing is dropped; None means `not train`.
            update_clusters: whether `DropCluster` layers learn their clusters from this batch.

        Returns:
            float32 `(batch, num_classes)`.

        Raises:
            KeyError: `rate` is by place, and leaves out that of a layer without a rate of its own.
            TypeError, ValueError: what a drop layer refuses.
        """
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        deterministic = not train if deterministic is None else deterministic

        def drop(place: str, x: Array) -> Array:
            layer = self.drop.get(place)
            if layer is None:
                return x
            arguments: dict[str, Any] = {"deterministic": deterministic}
            if layer.rate is None:
                arguments["rate"] = rate[place] if isinstance(rate, Mapping) else rate
            if isinstance(layer, DropCluster):
                arguments["update_clusters"] = update_clusters
            return layer(x, **arguments)

        if self.stem == "imagenet":
            x = _conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], dtype=self.dtype, name="stem_conv")(x)
        else:
            x = _conv(self.width, (3, 3), padding=[(1, 1), (1, 1)], dtype=self.dtype, name="stem_conv")(x)
        x = drop("stem", nn.relu(norm(name="stem_norm")(x)))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]

        block = nn.remat(self.block) if self.remat else self.block
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                x = block(
                    features=self.width * 2**i,
                    strides=2 if i > 0 and j == 0 else 1,
                    norm=norm,
                    dtype=self.dtype,
                    shortcut=self.shortcut,
                    name=f"stage{i + 1}_block{j + 1}",
                )(x)
            x = drop(f"stage{i + 1}", x)

        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


def resnet18(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-18: 11,689,512 parameters with 1000 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: the fields of `ResNet` but for `stage_sizes` and `block`: `stem`, `drop`, `dtype`, ...

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet18().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        11689512
    """
    return ResNet((2, 2, 2, 2), BasicBlock, num_classes, **options)


def resnet34(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-34: 21,797,672 parameters with 1000 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: the fields of `ResNet` but for `stage_sizes` and `block`: `stem`, `drop`, `dtype`, ...

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet34().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        21797672
    """
    return ResNet((3, 4, 6, 3), BasicBlock, num_classes, **options)


def resnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-50: 25,557,032 parameters with 1000 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: the fields of `ResNet` but for `stage_sizes` and `block`: `stem`, `drop`, `dtype`, ...

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet50().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        25557032
    """
    return ResNet((3, 4, 6, 3), BottleneckBlock, num_classes, **options)


def resnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-101: 44,549,160 parameters with 1000 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: the fields of `ResNet` but for `stage_sizes` and `block`: `stem`, `drop`, `dtype`, ...

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1.

    Example:
        >>> model = resnet101(num_classes=10, stem="cifar")
        >>> model.stage_sizes, model.block.__name__, model.num_classes
        ((3, 4, 23, 3), 'BottleneckBlock', 10)
    """
    return ResNet((3, 4, 23, 3), BottleneckBlock, num_classes, **options)


def resnet152(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-152: 60,192,808 parameters with 1000 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: the fields of `ResNet` but for `stage_sizes` and `block`: `stem`, `drop`, `dtype`, ...

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1.

    Example:
        >>> model = resnet152(num_classes=10, stem="cifar")
        >>> model.stage_sizes, model.block.__name__, model.num_classes
        ((3, 8, 36, 3), 'BottleneckBlock', 10)
    """
    return ResNet((3, 8, 36, 3), BottleneckBlock, num_classes, **options)


def _small(blocks: int, num_classes: int, **options: Any) -> ResNet:
    """The family for small images: three stages of as many blocks, shortcuts without parameters."""
    return ResNet((blocks,) * 3, BasicBlock, num_classes, width=16, stem="cifar", shortcut="identity", **options)


def resnet8(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-8 for small images: 75,290 parameters with 10 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: of the fields of `ResNet`: `drop`, `dtype`, `axis_name`, `remat`.

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 1.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet8().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        75290
    """
    return _small(1, num_classes, **options)


def resnet20(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-20 for small images: 269,722 parameters with 10 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: of the fields of `ResNet`: `drop`, `dtype`, `axis_name`, `remat`.

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 3.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet20().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        269722
    """
    return _small(3, num_classes, **options)


def resnet32(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-32 for small images: 464,154 parameters with 10 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: of the fields of `ResNet`: `drop`, `dtype`, `axis_name`, `remat`.

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 5.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet32().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        464154
    """
    return _small(5, num_classes, **options)


def resnet44(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-44 for small images: 658,586 parameters with 10 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: of the fields of `ResNet`: `drop`, `dtype`, `axis_name`, `remat`.

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 7.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet44().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        658586
    """
    return _small(7, num_classes, **options)


def resnet56(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-56 for small images: 853,018 parameters with 10 classes.

    Args:
        num_classes: the number of logits, at least 1.
        options: of the fields of `ResNet`: `drop`, `dtype`, `axis_name`, `remat`.

    Returns:
        A network for images `(batch, height, width, channels)`, normalized.

    Raises:
        ValueError, TypeError: an option that `ResNet` does not take, or not so.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 9.

    Example:
        >>> import jax
        >>> shapes = jax.eval_shape(resnet56().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        853018
    """
    return _small(9, num_classes, **options)
