"""ResNets (He et al., 2016) in Flax Linen, with optional drop layers after the stem and after each stage."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from dropcluster_jax.linen import DropCluster
from dropcluster_jax.masking.common import Rate


def _conv_general_dilated(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **kwargs: Any) -> Array:
    """See `jax.lax.conv_general_dilated`. On CPU, a 1x1 convolution is a matrix product, which XLA compiles better."""
    convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **kwargs)

    def multiply(x: Array, kernel: Array) -> Array:
        x = x[:, :: strides[0], :: strides[1]]
        # XLA would transpose the output's gradient if the product had more than two dimensions.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)

    if kernel.shape[:2] != (1, 1):
        return convolve(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=multiply, default=convolve)


def _relu(x: Array) -> Array:
    """See `nn.relu`. On CPU, XLA stores the result; see `_store`."""

    def select(x: Array) -> Array:
        return jnp.where(x <= 0, jnp.zeros_like(x), x)

    return jax.lax.platform_dependent(x, cpu=select, default=nn.relu)


def _store(x: Array) -> Array:
    """Returns `x`. On CPU, XLA stores it instead of recomputing it for each use.

    XLA's CPU backend duplicates elementwise operations of a single array, here into each kernel's gradient and together
    with everything that led to the activations. A selection has two arrays and is not duplicated.
    """

    def select(x: Array) -> Array:
        return jnp.where(x < -jnp.inf, jnp.zeros_like(x), x)

    return jax.lax.platform_dependent(x, cpu=select, default=lambda x: x)


# He initialization, arXiv:1502.01852, equation 14.
_conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated_cls=lambda: _conv_general_dilated,
)


class BasicBlock(nn.Module):
    """Residual block with two 3x3 convolutions."""

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    shortcut: Literal["projection", "identity"]
    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the block's output with `features` channels, downsampled by `strides`."""
        strides = (self.strides, self.strides)
        y = _conv(self.features, (3, 3), strides, padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv1")(x)
        y = _relu(self.norm(name="norm1")(y))
        y = _conv(self.features, (3, 3), padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        return _relu(y + _shortcut(self, x, self.features))


class BottleneckBlock(nn.Module):
    """Residual block with a 1x1, a strided 3x3 and an expanding 1x1 convolution."""

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    shortcut: Literal["projection", "identity"]
    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the block's output with `4 * features` channels, downsampled by `strides`."""
        strides, out_features = (self.strides, self.strides), self.features * self.expansion
        y = _conv(self.features, (1, 1), dtype=self.dtype, name="conv1")(x)
        y = _relu(self.norm(name="norm1")(y))
        y = _conv(self.features, (3, 3), strides, padding=[(1, 1), (1, 1)], dtype=self.dtype, name="conv2")(y)
        y = _relu(self.norm(name="norm2")(y))
        y = _conv(out_features, (1, 1), dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        return _relu(y + _shortcut(self, x, out_features))


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, features: int) -> Array:
    """Returns `x`, matched to the block's output shape by a projection or by subsampling and zero padding."""
    if x.shape[-1] == features and block.strides == 1:
        return x
    if block.shortcut == "identity":  # option A of He et al., section 4.2
        padding = features - x.shape[-1]
        x = x[:, :: block.strides, :: block.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (padding // 2, padding - padding // 2)))
    x = _conv(features, (1, 1), (block.strides, block.strides), dtype=block.dtype, name="shortcut_conv")(x)
    return block.norm(name="shortcut_norm")(x)


class ResNet(nn.Module):
    """Residual network with optional drop layers.

    Bottleneck blocks stride in the 3x3 convolution ("ResNet v1.5"), and the scale of each block's last BatchNorm is
    initialized to 0.

    Attributes:
        stage_sizes: Number of blocks in each stage.
        block: `BasicBlock` or `BottleneckBlock`.
        num_classes: Number of logits.
        width: Number of features of the stem and the first stage. Doubles with every stage.
        stem: `"imagenet"`, a 7x7 convolution with stride 2 and a max-pool, or `"cifar"`, a 3x3 convolution.
        shortcut: Shortcut of blocks that change the shape: `"projection"`, a 1x1 convolution, or `"identity"`,
            subsampling and zero padding.
        drop: Drop layers by place: `"stem"` (before the max-pool) or `"stage1"`, `"stage2"`, ... (after the stage's
            last block). Layers are copied and named `drop_stem`, `drop_stage1`, ...; see `drop_layer_names`.
        dtype: Dtype of the activations. Parameters, statistics and logits are float32.
        axis_name: Mapped axis over which BatchNorm averages batch statistics, if any.
        remat: Whether to recompute blocks in the backward pass to save memory.
        frozen: Places whose parts are not trained: their BatchNorm always uses its running statistics, and no gradient
            flows into the first parts if all of these are frozen. `part_of` maps
            parameters to places, for optimizers.

    Raises:
        ValueError: If `drop` or `frozen` has an unknown place, or `stem` or `shortcut` is unknown.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, section 5.1.

    Example:
        >>> import jax
        >>> from dropcluster_jax import KMeans
        >>> model = resnet20(drop={"stage2": DropCluster(KMeans(cluster_size=16))})
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 32, 32, 3)))
        >>> shapes["clusters"]["drop_stage2"]["labels"].shape, shapes["clusters"]["drop_stage2"]["sizes"].shape
        ((16, 16, 1), (16, 1))
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[BottleneckBlock]
    num_classes: int = 1000
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "identity"] = "projection"
    drop: Mapping[str, nn.Module] = FrozenDict()
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    frozen: tuple[str, ...] = ()

    # Read by Flax: drop layers keep the names set below.
    preserve_adopted_names = True

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be 'imagenet' or 'cifar', got {self.stem!r}")
        if self.shortcut not in ("projection", "identity"):
            raise ValueError(f"shortcut must be 'projection' or 'identity', got {self.shortcut!r}")
        for name in ("drop", "frozen"):
            if unknown := sorted(set(getattr(self, name)) - set(self.places)):
                raise ValueError(f"places in {name} must be among {', '.join(self.places)}, got {unknown[0]!r}")
        # A FrozenDict is hashable, so models can be static arguments of jit. Copies of the layers have separate
        # variables even if one layer was passed for several places; Flax's own clones already have their names.
        self.drop = FrozenDict(
            {
                place: layer if layer.name == _layer_name(place) else layer.clone(name=_layer_name(place))
                for place, layer in self.drop.items()
            }
        )
        super().__post_init__()

    @property
    def places(self) -> tuple[str, ...]:
        """Valid keys of `drop`, from input to output: `("stem", "stage1", ...)`."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.stage_sizes))))

    @property
    def drop_layer_names(self) -> dict[str, str]:
        """Names of the drop layers in the variables by place, from input to output: `{"stage1": "drop_stage1"}`."""
        return {place: _layer_name(place) for place in self.places if place in self.drop}

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        train: bool = False,
        rate: Rate | Mapping[str, Rate] = 0.0,
        deterministic: bool | None = None,
        update_clusters: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits.

        Args:
            x: Normalized images.
            train: Whether BatchNorm uses and updates batch statistics.
            rate: Rate of the drop layers that were created without one: a scalar, or one rate by place.
            deterministic: Whether to disable the drop layers. Defaults to `not train`.
            update_clusters: Whether `DropCluster` layers update their clusters from `x`.

        Raises:
            ValueError: If `rate` has a place without a drop layer or whose layer has its own rate, or lacks one that
                needs a rate.
        """
        if isinstance(rate, Mapping) and (unknown := sorted(set(rate) - set(self.drop))):
            places = ", ".join(self.drop_layer_names) or "those of drop, which is empty"
            raise ValueError(f"places in rate must be among {places}, got {unknown[0]!r}")
        deterministic = not train if deterministic is None else deterministic
        norm = functools.partial(
            nn.BatchNorm,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        norms = {
            place: functools.partial(norm, use_running_average=not train or place in self.frozen)
            for place in self.places
        }
        drop = functools.partial(self._drop, rate=rate, deterministic=deterministic, update_clusters=update_clusters)

        if self.stem == "imagenet":
            x = _conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], dtype=self.dtype, name="stem_conv")(x)
        else:
            x = _conv(self.width, (3, 3), padding=[(1, 1), (1, 1)], dtype=self.dtype, name="stem_conv")(x)
        x = drop("stem", _relu(norms["stem"](name="stem_norm")(x)))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]

        block = nn.remat(self.block) if self.remat else self.block
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                x = block(
                    features=self.width * 2**i,
                    strides=2 if i > 0 and j == 0 else 1,
                    norm=norms[f"stage{i + 1}"],
                    dtype=self.dtype,
                    shortcut=self.shortcut,
                    name=f"stage{i + 1}_block{j + 1}",
                )(x)
            x = drop(f"stage{i + 1}", x)

        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)

    def _drop(
        self, place: str, x: Array, *, rate: Rate | Mapping[str, Rate], deterministic: bool, update_clusters: bool
    ) -> Array:
        """Applies the drop layer of `place`, if there is one."""
        if all(earlier in self.frozen for earlier in self.places[: self.places.index(place) + 1]):
            x = jax.lax.stop_gradient(x)
        layer = self.drop.get(place)
        if layer is None:
            return x
        arguments: dict[str, Any] = {"deterministic": deterministic}
        if layer.rate is None:
            if isinstance(rate, Mapping) and place not in rate:
                raise ValueError(f"rate must have an entry for {place}, got {', '.join(rate)}")
            arguments["rate"] = rate[place] if isinstance(rate, Mapping) else rate
        elif isinstance(rate, Mapping) and place in rate:
            raise ValueError(f"rate has an entry for {place}, whose layer was created with rate {layer.rate}")
        if isinstance(layer, DropCluster):
            arguments["update_clusters"] = update_clusters
        return _store(layer(x, **arguments))


class CifarResNet(ResNet):
    """`ResNet` with the defaults of He et al., section 4.2: for 32x32 images, identity shortcuts, 10 classes."""

    num_classes: int = 10
    width: int = 16
    stem: Literal["imagenet", "cifar"] = "cifar"
    shortcut: Literal["projection", "identity"] = "identity"


def _layer_name(place: str) -> str:
    return f"drop_{place}"


def part_of(path: tuple[Any, ...]) -> str:
    """Returns the part of a `ResNet` that a parameter belongs to: `"stem"`, `"stage1"`, ..., or `"head"`.

    Args:
        path: Path of the parameter in the collection "params", as in `jax.tree_util.tree_map_with_path`.

    Example:
        >>> params = {"stem_conv": {"kernel": 1}, "stage2_block1": {"conv1": {"kernel": 1}}, "head": {"bias": 1}}
        >>> parts = jax.tree_util.tree_map_with_path(lambda path, _: part_of(path), params)
        >>> parts["stem_conv"]["kernel"], parts["stage2_block1"]["conv1"]["kernel"], parts["head"]["bias"]
        ('stem', 'stage2', 'head')
    """
    return path[0].key.partition("_")[0]


resnet18 = functools.partial(ResNet, (2, 2, 2, 2), BasicBlock)
resnet34 = functools.partial(ResNet, (3, 4, 6, 3), BasicBlock)
resnet50 = functools.partial(ResNet, (3, 4, 6, 3), BottleneckBlock)
resnet101 = functools.partial(ResNet, (3, 4, 23, 3), BottleneckBlock)
resnet152 = functools.partial(ResNet, (3, 8, 36, 3), BottleneckBlock)

resnet8 = functools.partial(CifarResNet, (1, 1, 1), BasicBlock)
resnet20 = functools.partial(CifarResNet, (3, 3, 3), BasicBlock)
resnet32 = functools.partial(CifarResNet, (5, 5, 5), BasicBlock)
resnet44 = functools.partial(CifarResNet, (7, 7, 7), BasicBlock)
resnet56 = functools.partial(CifarResNet, (9, 9, 9), BasicBlock)

ModelName = Literal[
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet152",
]

MODELS: dict[str, Callable[..., ResNet]] = {
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34": resnet34,
    "resnet44": resnet44,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet101": resnet101,
    "resnet152": resnet152,
}
