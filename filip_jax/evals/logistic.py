"""Multinomial logistic regression on the devices of a mesh: the classifiers that a linear probe trains.

By L-BFGS on all examples at once, with the objective of scikit-learn's LogisticRegression; or by SGD behind a
normalisation of each batch. Everything is float32 and of the highest precision that the devices have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from filip_jax.inference.ranking import TIE
from filip_jax.mesh import BATCH_AXES, replicated

ROWS = 16_384  # examples of a chunk, whose scores of all classes are in memory at a time, shared by the devices
ROUND = 20  # iterations between two looks at how far it is
LBFGS = optax.lbfgs()
EPSILON, RUNNING = 1e-6, 0.1  # of the normalisation of batches: added to variances; the weight of the newest batch

Classifier = dict[str, np.ndarray]  # {"weight": [width, classes], "bias": [classes]}


@dataclass(frozen=True)
class Examples:
    """Features [chunks, rows, width] and labels [chunks, rows]; the devices share the rows of each chunk.

    Places beyond the last of `count` examples repeat it; no fit and no rank takes them into account.
    """

    features: jax.Array
    labels: jax.Array
    count: int
    mesh: Mesh

    def spread(self, values: np.ndarray) -> jax.Array:
        """Values of each example as they lie on the devices, [chunks, rows]."""
        places = np.arange(self.labels.size).reshape(self.labels.shape)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        values = np.append(values, np.zeros(places.size - self.count, values.dtype))
        return jax.make_array_from_callback(places.shape, sharding, lambda part: values[places[part]])


def put_examples(features: Float[np.ndarray, "n width"], labels: Int[np.ndarray, " n"], mesh: Mesh) -> Examples:
    """Examples in host memory, the same ones in each process, onto the devices."""
    rows = -(-min(len(labels), ROWS) // mesh.size) * mesh.size
    places = np.arange(-(-len(labels) // rows) * rows).clip(max=len(labels) - 1).reshape(-1, rows)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def put(values):  # only what a device gets is copied
        shape = (*places.shape, *values.shape[1:])

        def rows(part: Any) -> np.ndarray:
            return values[places[part[:2]]]

        return jax.make_array_from_callback(shape, sharding, rows)

    return Examples(put(features), put(labels.astype(np.int32)), len(labels), mesh)


def fit(
    examples: Examples,
    chosen: Bool[np.ndarray, " n"],
    classes: int,
    c: float,
    *,
    max_iterations: int,
    tolerance: float,
    advance: Callable[[int], None],
) -> tuple[Classifier, int, bool]:
    """The classifier that minimises C * sum of the cross entropies + |weight|^2 / 2, by L-BFGS from zero.

    That is scikit-learn's LogisticRegression(C=c), for three classes and more. The objective is divided by C and the
    number of examples, and a fit has converged when no component of that gradient is larger than the tolerance, as
    there. The minimum does not depend on where the features' origin is; how fast it is found does: centre them.

    Args:
        chosen: the examples to fit.
        advance: is told every few iterations how many more are done.

    Returns:
        The classifier, how many iterations it took, and whether it has converged.
    """
    data = (examples.features, examples.labels, examples.spread(chosen.astype(np.float32)))
    strength = 1 / (c * chosen.sum())
    state, done, going = _begin(examples.features.shape[-1], classes, examples.mesh), 0, True
    while going and done < max_iterations:
        limit = min(done + ROUND, max_iterations)
        state = _iterate(state, *data, strength, limit, tolerance, mesh=examples.mesh)
        before, (done, largest, moved) = done, map(np.asarray, state[2:])
        advance(int(done - before))
        going = largest > tolerance and moved
    return jax.tree.map(np.array, state[0]), int(done), bool(largest <= tolerance)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(width, classes, mesh):
    """(classifier, state of L-BFGS, iterations done, largest component of the gradient, whether the last one moved)."""
    classifier = {"weight": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    begun = (classifier, LBFGS.init(classifier), jnp.int32(0), jnp.float32(jnp.inf), jnp.bool(True))
    return jax.lax.with_sharding_constraint(begun, replicated(mesh))


@partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _iterate(state, features, labels, weights, strength, limit, tolerance, *, mesh):
    """Iterations up to the limit or to where it ends: no gradient to speak of, or no step that leads down."""

    def objective(classifier):
        return _objective(classifier, features, labels, weights, strength)

    def goes_on(state):
        *_, done, largest, moved = state
        return (done < limit) & (largest > tolerance) & moved

    def iterate(state):
        classifier, inner, done, _, _ = state
        value, gradient = optax.value_and_grad_from_state(objective)(classifier, state=inner)
        update, inner = LBFGS.update(gradient, inner, classifier, value=value, grad=gradient, value_fn=objective)
        moved = optax.tree.norm(update, ord=jnp.inf) > 0
        largest = optax.tree.norm(optax.tree.get(inner, "grad"), ord=jnp.inf)
        return optax.apply_updates(classifier, update), inner, done + 1, largest, moved

    return jax.lax.with_sharding_constraint(jax.lax.while_loop(goes_on, iterate, state), replicated(mesh))


def _objective(classifier, features, labels, weights, strength):
    """Mean cross entropy + strength / 2 * |weight|^2; the scores of one chunk are in memory, backwards too."""

    @jax.checkpoint
    def add(total, chunk):
        x, label, weight = chunk
        losses = optax.softmax_cross_entropy_with_integer_labels(_scores(classifier, x), label)
        return total + jnp.sum(weight * losses), None

    total, _ = jax.lax.scan(add, jnp.float32(0), (features, labels, weights))
    return total / weights.sum() + strength / 2 * jnp.sum(classifier["weight"] ** 2)


def _scores(classifier, features):
    return jnp.matmul(features, classifier["weight"], precision=jax.lax.Precision.HIGHEST) + classifier["bias"]


def ranks(classifier: Classifier, examples: Examples) -> Int[np.ndarray, " n"]:
    """The rank of each example's class, from 1, as `similarity.ranks` has it: ties and NaN count against it."""
    found = _ranks(classifier, examples.features, examples.labels, mesh=examples.mesh)
    return np.asarray(found).reshape(-1)[: examples.count]


@partial(jax.jit, static_argnames="mesh")
def _ranks(classifier, features, labels, *, mesh):
    def of_chunk(chunk):
        scores = _scores(classifier, chunk[0])
        bound = jnp.take_along_axis(scores, chunk[1][:, None], axis=1) - TIE
        others = jnp.arange(scores.shape[1]) != chunk[1][:, None]
        return 1 + jnp.sum(others & ~(scores < bound), axis=1)  # all others, where the bound is NaN

    return jax.lax.with_sharding_constraint(jax.lax.map(of_chunk, (features, labels)), replicated(mesh))


class Sgd:
    """SGD with momentum from zero on batches whose features are first normalised by the batch's mean and variance.

    That is BatchNorm without a scale and a shift of its own before the classifier, as in MAE's probes (arXiv
    2111.06377, A.2); `classifier` has the running mean and variance in its weights, with PyTorch's momentum of 0.1.
    The learning rate rises to its peak, then falls to zero as a cosine.

    Args:
        peak_learning_rate, warmup_steps, total_steps: of the learning rate.
        weight_decay: not decoupled: times the parameters, added to the gradient.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        mesh: Mesh,
        *,
        peak_learning_rate: float,
        momentum: float,
        weight_decay: float,
        warmup_steps: int,
        total_steps: int,
    ):
        first = peak_learning_rate / max(warmup_steps, 1)
        schedule = optax.warmup_cosine_decay_schedule(first, peak_learning_rate, warmup_steps, total_steps)
        self._transform = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum))
        self._advance = jax.jit(self._next, out_shardings=replicated(mesh), donate_argnums=0)

        def begin():
            classifier = {"weight": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
            return classifier, self._transform.init(classifier), {"mean": jnp.zeros(width), "variance": jnp.ones(width)}

        self.state = jax.jit(begin, out_shardings=replicated(mesh))()

    def step(self, features: Float[jax.Array, "batch width"], labels: Int[jax.Array, " batch"]) -> None:
        """One step on a batch of two examples or more, once the devices have finished the step before."""
        jax.block_until_ready(self.state)
        self.state = self._advance(self.state, features, labels)

    def _next(self, state, features, labels):
        classifier, inner, running = state
        mean, variance = features.mean(axis=0), features.var(axis=0)
        x = (features - mean) * jax.lax.rsqrt(variance + EPSILON)

        def loss(classifier):
            return optax.softmax_cross_entropy_with_integer_labels(_scores(classifier, x), labels).mean()

        update, inner = self._transform.update(jax.grad(loss)(classifier), inner, classifier)
        batch = {"mean": mean, "variance": variance * len(labels) / (len(labels) - 1)}  # unbiased, as PyTorch's
        running = jax.tree.map(lambda old, new: old + RUNNING * (new - old), running, batch)
        return optax.apply_updates(classifier, update), inner, running

    @property
    def classifier(self) -> Classifier:
        """For features as they are."""
        classifier, _, running = jax.tree.map(np.asarray, self.state)
        weight = classifier["weight"] / np.sqrt(running["variance"] + np.float32(EPSILON))[:, None]
        return {"weight": weight, "bias": classifier["bias"] - running["mean"] @ weight}
