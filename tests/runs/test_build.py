import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.data import DATASETS
from dropcluster_jax.models import MODELS, ModelName
from dropcluster_jax.runs import PRESETS, AugmentConfig, DropConfig, TrainConfig, build
from dropcluster_jax.runs.config import Method

DIGITS = DATASETS["digits"]


def test_every_model_name_and_method_can_be_built():
    assert set(get_args(ModelName)) == set(MODELS)
    for method in get_args(Method):
        layers = build.make_drop_layers(DropConfig(method=method, places=("stage1", "stage2")))
        assert set(layers) == (set() if method == "none" else {"stage1", "stage2"})


@pytest.mark.bad_input
def test_probe_batches_smaller_than_the_number_of_devices_raise():
    config = TrainConfig(drop=DropConfig(probe_size=8))
    build.check_probe_size(config, DIGITS, 8)
    with pytest.raises(ValueError, match=r"drop\.probe_size .* at least the number of devices, 16, got 8"):
        build.check_probe_size(config, DIGITS, 16)


def test_drop_options_reach_the_layers():
    for name, kind in {"kmeans": dc.KMeans, "rena": dc.ReNA, "grid": dc.Grid}.items():
        config = DropConfig(clusterer=name, cluster_size=9.0, per_channel=True, min_explained_variance=0.3)
        for layer in build.make_drop_layers(config).values():
            assert layer.clusterer == kind(cluster_size=9.0, per_channel=True) and layer.min_explained_variance == 0.3


def test_options_of_data_driven_methods_reach_the_layers():
    cells, channels, focused = (
        build.make_drop_layers(DropConfig(**options, places=("stem",)))["stem"]
        for options in (
            {"method": "corr_drop", "block_size": 5},
            {"method": "corr_drop", "per_channel": True},
            {"method": "focused_dropout", "threshold_range": (0.1, 0.2)},
        )
    )
    assert (cells.variant, cells.block_size, channels.variant) == ("spatial", 5, "channel")
    assert focused.threshold_range == (0.1, 0.2)


def test_presets_use_known_datasets_and_the_stem_for_their_image_size():
    assert set(PRESETS) == {"imagenet", "finetune", *DATASETS} - {"imagenet2012"}
    for _, config in PRESETS.values():
        spec = DATASETS[config.data.name]
        for name in (name for name in MODELS if set(config.drop.places) <= set(MODELS[name](10).places)):
            model = build.make_model(dataclasses.replace(config, model=name), spec)
            assert model.stem == ("cifar" if spec.image_shape[0] < 100 else MODELS[name](10).stem)
            assert set(model.drop) == set(config.drop.places)


def test_learning_rate_is_scaled_by_the_batch_size_and_warms_up():
    _, config = PRESETS["imagenet"]
    tx = build.make_optimizer(config, num_steps=90 * 1251, steps_per_epoch=1251)
    params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    state, rates = tx.init(params), []
    for step in (0, 2502, 5 * 1251, 45 * 1251 + 5 * 1251 // 2, 90 * 1251):
        count = jax.tree.map(
            lambda leaf, step=step: jnp.asarray(step, jnp.int32) if leaf.dtype == jnp.int32 else leaf, state
        )
        updates, _ = tx.update({"kernel": jnp.zeros((1, 1)), "bias": jnp.ones(1)}, count, params)
        rates.append(-float(updates["bias"][0]) / 1.9)  # the first step of Nesterov momentum
    assert rates == pytest.approx([0.4 / 6256, 0.16, 0.4, 0.2, 0], rel=1e-3, abs=1e-6)


def test_recipe_of_the_steps(monkeypatch):
    """The options of a run as the values that the steps are made with."""
    monkeypatch.setattr(build, "make_steps", lambda model, tx, **options: options)
    config = TrainConfig(
        steps=1000,
        drop=DropConfig(rate=0.2, ramp_start=0.1, ramp_end=0.7),
        label_smoothing=0.1,
        grad_accum_steps=2,
        ema_decay=0.9,
        max_nonfinite_steps=3,
    )
    options = build.make_run_steps(config, build.make_model(config, DIGITS), DIGITS, "batch")
    rates = [float(options["rate"](step)) for step in (0, 100, 250, 400, 700, 1000)]
    np.testing.assert_allclose(rates, [0, 0, 0.05, 0.1, 0.2, 0.2], atol=1e-6)
    expected = {"label_smoothing": 0.1, "grad_accum_steps": 2, "ema_decay": 0.9, "skip_nonfinite": True}
    assert options.items() >= {**expected, "axis_name": "batch", "mix": None}.items()
    images = np.full((1, *DIGITS.image_shape), 255, np.uint8)
    np.testing.assert_allclose(options["preprocess"](images), (1 - DIGITS.mean[0]) / DIGITS.std[0], rtol=1e-5)


def test_weight_decay_applies_to_kernels_with_nesterov_momentum():
    config = TrainConfig(model="resnet8", weight_decay=0.01, learning_rate=0.5)
    model = build.make_model(config, DIGITS)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, *DIGITS.image_shape)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["params"])
    tx = build.make_optimizer(config, num_steps=1000, steps_per_epoch=100)
    state, trace = tx.init(params), 0.0
    for step in range(3):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        trace = 0.9 * trace + 0.01
        for path, leaf in jax.tree.leaves_with_path(updates):
            decay = 0.01 + 0.9 * trace if path[-1].key == "kernel" else 0.0
            np.testing.assert_allclose(leaf, -0.5 * (1 + step) / 51 * decay, rtol=1e-5)  # 50 steps of warm-up


def test_number_of_steps():
    assert DIGITS.num_train_examples == 1437
    assert build.num_steps(TrainConfig(steps=7), DIGITS) == 7
    assert build.steps_per_epoch(TrainConfig(batch_size=64), DIGITS) == 22
    assert build.num_steps(TrainConfig(epochs=2.5, batch_size=64), DIGITS) == 55
    assert build.num_steps(TrainConfig(epochs=0.001), DIGITS) == 1
    for options in ({"steps": 3_000_000_000}, {"epochs": 1e12}):
        with pytest.raises(ValueError, match=r"steps, or epochs in steps, must be below 2\*\*31"):
            build.num_steps(TrainConfig(**options), DIGITS)


def test_options_reach_the_network():
    config = TrainConfig(model="resnet8", dtype="bfloat16", remat=True, strategy="pmap", sync_batch_norm=True)
    model = build.make_model(config, DIGITS, axis_name="batch")
    assert (model.num_classes, model.dtype, model.remat, model.axis_name) == (10, jnp.bfloat16, True, "batch")
    assert build.make_model(TrainConfig(model="resnet8"), DIGITS, axis_name="batch").axis_name is None


def augmented(spec=DIGITS, **options):
    images = jnp.asarray(np.random.default_rng(0).integers(1, 256, (4, *spec.image_shape)), jnp.uint8)
    apply = jax.jit(build.make_augmentation(AugmentConfig(**options), spec))
    return images, apply(jax.random.key(0), images)


def test_augmentations_are_applied_when_selected():
    for options in ({"shift": 0}, {"shift": 1}, {"flip": True, "shift": 0}, {"cutout": 3, "shift": 0}):
        images, result = augmented(**options)
        assert result.shape == images.shape and result.dtype == images.dtype
        assert (result == images).all() == (options == {"shift": 0}), options
    images, result = augmented(cutout=3, shift=0)
    mean_color = round(255 * DIGITS.mean[0])
    assert set(np.asarray(result)[np.asarray(result != images)].tolist()) == {mean_color}


def test_encoded_images_are_not_cropped_or_flipped_again():
    spec = dataclasses.replace(DIGITS, encoded=True)
    images, result = augmented(spec, resized_crop=True, flip=True)
    assert (result == images).all()


def test_mixing_is_a_random_choice_of_the_selected_functions():
    assert build.make_mixing(AugmentConfig(), 10) is None
    images = jnp.arange(8.0)[:, None, None, None] * jnp.ones((8, 4, 4, 1))
    mix = jax.jit(build.make_mixing(AugmentConfig(mixup=1.0, cutmix=1.0), 10))
    constant = set()
    for seed in range(8):
        mixed, labels = mix(jax.random.key(seed), images, jnp.arange(8))
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-5)
        # mixup keeps images constant; cutmix pastes boxes.
        constant.add(bool((np.ptp(np.asarray(mixed), axis=(1, 2)) < 1e-5).all()))
    assert constant == {True, False}


def test_flops_of_training_do_not_count_drop_layers():
    configs = (TrainConfig("resnet8", drop=DropConfig(method)) for method in ("none", "drop_cluster"))
    plain, dropped = (build.make_model(config, DIGITS) for config in configs)
    flops = build.training_flops(plain, (16, 16, 1))
    assert flops == build.training_flops(dropped, (16, 16, 1))
    # Four times the pixels; padding does not count.
    assert 4 * flops < build.training_flops(plain, (32, 32, 1)) < 4.5 * flops
