"""Training steps with every transformation of Optax."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from dropcluster_jax.data import load
from dropcluster_jax.training import DataParallel, make_steps

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")

# Values of the arguments without defaults.
ARGUMENTS = {
    "learning_rate": 1e-2,
    "inner": optax.sgd(0.1),
    "tx": optax.sgd(0.1),
    "base_optimizer": optax.sgd(0.1),
    "optimizer": optax.sgd(0.1),
    "adv_optimizer": optax.sgd(0.05),
    "decay": 0.9,
    "max_norm": 1.0,
    "max_delta": 1.0,
    "threshold": 1.0,
    "clipping": 0.1,
    "eta": 0.1,
    "gamma": 0.1,
    "key": 0,
    "step_size": -0.1,
    "step_size_fn": lambda count: -0.1,
    "max_backtracking_steps": 5,
    "max_linesearch_steps": 5,
    "mask": True,
    "max_consecutive_errors": 3,
}
# Combinations of other transformations, and what no training step can call.
EXCLUDED = {
    "chain",
    "conditionally_mask",
    "conditionally_transform",
    "inject_hyperparams",
    "inject_stateful_hyperparams",
    "measure_with_ema",
    "multi_transform",
    "named_chain",
    "partition",
    "selective_transform",
    "snapshot",
    "stateless",
    "stateless_with_tree_map",
    "scale_by_muon",  # part of muon, which applies it to matrices only
}
UNSUPPORTED = {
    "lookahead": (lambda: optax.lookahead(optax.sgd(0.1), 5, 0.5), TypeError, "optax.lookahead"),
    "dpsgd": (lambda: optax.contrib.dpsgd(0.1, 1.0, 0.1, 0), ValueError, "batch dimension"),
    "differentially_private_aggregate": (
        lambda: optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0),
        ValueError,
        "batch dimension",
    ),
    "sophia": (lambda: optax.contrib.sophia(0.1), ValueError, "obj_fn must be provided"),
}


def transformations():
    """Returns the functions of Optax that return a transformation, by name."""
    functions = {}
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                annotation = str(inspect.signature(function).return_annotation)
                if "GradientTransformation" in annotation and name not in EXCLUDED | UNSUPPORTED.keys():
                    functions[name] = function
    return functions


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, rate=0.0):
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.fixture
def batch():
    return {"image": jax.random.normal(jax.random.key(0), (6, 4, 4, 1)), "label": jnp.arange(6) % 3}


@pytest.mark.slow
def test_every_transformation_trains(batch):
    """Steps are traced as a whole, but executed operation by operation, so that transformations share compilations."""
    functions, failures = transformations(), []
    assert len(functions) > 80
    for name, function in functions.items():
        parameters = [each for each in inspect.signature(function).parameters.values() if each.kind != each.VAR_KEYWORD]
        required = [each.name for each in parameters if each.default is each.empty or each.name == "key"]
        steps = make_steps(Linear(), function(**{name: ARGUMENTS[name] for name in required}))

        def first_step(batch, steps=steps):
            return steps.train(steps.init(jax.random.key(0), batch), batch)

        jax.eval_shape(first_step, batch)
        state, metrics = first_step(batch)
        if not (metrics["finite"] and state.step == 1):
            failures.append(name)
    assert not failures


@pytest.mark.bad_input
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_transformations_raise(name, batch):
    make, error, message = UNSUPPORTED[name]
    with pytest.raises(error, match=message):
        steps = make_steps(Linear(), make())
        steps.train(steps.init(jax.random.key(0), batch), batch)


def test_extra_arguments_reach_the_transformation(batch):
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args, loss=extra_args["value_fn"](params))
        return updates, state

    steps = make_steps(Linear(), optax.GradientTransformationExtraArgs(lambda params: (), update))
    state = steps.init(jax.random.key(0), batch)
    _, metrics = steps.train(state, batch)
    assert seen["value"] == metrics["loss"] == seen["loss"]
    losses = jax.grad(lambda params: seen["value_fn"](params))(state.params)
    assert all(jax.tree.leaves(jax.tree.map(jnp.allclose, losses, seen["grad"])))


@pytest.mark.slow
def test_line_search_on_several_devices(batch):
    """The loss along the search direction is that of all devices."""
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 4), batch)
    results = []
    for parallel in (DataParallel("jit"), DataParallel("shard_map")):
        steps = parallel.compile(make_steps(Linear(), optax.lbfgs(), axis_name=parallel.axis_name))
        sharded = parallel.shard_batch(batch)
        state = steps.init(jax.random.key(0), sharded)
        for _ in range(3):
            state, metrics = steps.train(state, sharded)
        results.append((state.params, metrics["loss"]))
    assert all(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(np.asarray(a), np.asarray(b), atol=1e-5), *results))
    )


def test_eval_params_are_evaluated():
    digits = load("digits")
    batch = {"image": digits.train.images[:64] / np.float32(255), "label": digits.train.labels[:64]}

    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, rate=0.0):
            return nn.Dense(10)(x.reshape(len(x), -1))

    tx = optax.contrib.schedule_free_sgd(1.0)
    steps = make_steps(Classifier(), tx, eval_params=optax.contrib.schedule_free_eval_params)
    plain = make_steps(Classifier(), tx)
    state, train = jax.jit(steps.init)(jax.random.key(0), batch), jax.jit(steps.train)
    for _ in range(5):
        state, _ = train(state, batch)
    averaged = state._replace(params=optax.contrib.schedule_free_eval_params(state.opt_state, state.params))
    expected, training_point = plain.evaluate(averaged, batch), plain.evaluate(state, batch)
    loss = steps.evaluate(state, batch)["loss"]
    assert loss == pytest.approx(float(expected["loss"])) and loss != pytest.approx(float(training_point["loss"]))
    with pytest.raises(ValueError, match="only one of ema_decay and eval_params"):
        make_steps(Classifier(), tx, eval_params=optax.contrib.schedule_free_eval_params, ema_decay=0.9)
