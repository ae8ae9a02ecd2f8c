"""Training steps with every transformation of Optax."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from training.helpers import Linear

from dropcluster_jax.training import DataParallel, make_steps

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")

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


def optimizers():
    """Returns the optimizers of Optax that need at most a learning rate, and wrappers of others, by name."""
    functions = {"sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))}
    functions["multi steps"] = lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    functions["clipped"] = lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    for name, function in [*vars(optax).items(), *vars(optax.contrib).items()]:
        if inspect.isfunction(function) and name not in {*UNSUPPORTED, "scale_by_muon"}:  # for matrices only
            signature = inspect.signature(function)
            required = [each.name for each in signature.parameters.values() if each.default is each.empty]
            if "GradientTransformation" in str(signature.return_annotation) and set(required) <= {"learning_rate"}:
                options = {"key": 0} if "key" in signature.parameters else {}
                functions[name] = functools.partial(function, *[1e-2] * len(required), **options)
    return functions


@pytest.fixture
def batch():
    return {"image": jax.random.normal(jax.random.key(0), (6, 4, 4, 1)), "label": jnp.arange(6) % 3}


@pytest.mark.slow
def test_every_optimizer_trains(batch):
    """Steps are traced as a whole, but executed operation by operation, so that optimizers share compilations."""
    functions, failures = optimizers(), []
    assert len(functions) > 80
    for name, function in functions.items():
        steps = make_steps(Linear(), function())

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


def test_eval_params_are_evaluated(batch):
    tx = optax.contrib.schedule_free_sgd(1.0)
    steps = make_steps(Linear(), tx, eval_params=optax.contrib.schedule_free_eval_params)
    plain = make_steps(Linear(), tx)
    state, train = jax.jit(steps.init)(jax.random.key(0), batch), jax.jit(steps.train)
    for _ in range(5):
        state, _ = train(state, batch)
    averaged = state._replace(params=optax.contrib.schedule_free_eval_params(state.opt_state, state.params))
    expected, training_point = plain.evaluate(averaged, batch), plain.evaluate(state, batch)
    loss = steps.evaluate(state, batch)["loss"]
    assert loss == pytest.approx(float(expected["loss"])) and loss != pytest.approx(float(training_point["loss"]))
