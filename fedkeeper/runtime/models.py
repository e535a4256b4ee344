"""The models that can be trained, and their weights as named tensors."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import TaskError
from fedkeeper.runtime.backend import keras
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.layout import Shape
from fedkeeper.runtime.updates import shapes
from fedkeeper.runtime.wire import ModelSpec


def cnn(input_shape: tuple[int, ...], output_size: int) -> Any:
    """The CNN of McMahan et al., arXiv:1602.05629, section 3, unpadded: 582,026 parameters for MNIST.

    Input (batch, height, width, channels) in 0..1, output (batch, output_size) logits.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(32, 5, activation="relu", name="conv1"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(64, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(512, activation="relu", name="dense1"),
            layers.Dense(output_size, name="dense2"),
        ],
        name="cnn",
    )


def mnistnn(input_shape: tuple[int, ...], hidden_size: int, output_size: int) -> Any:
    """One hidden layer. Input (batch, *input_shape) in 0..1, output (batch, output_size) logits."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Flatten(name="flatten"),
            layers.Dense(hidden_size, activation="relu", name="dense1"),
            layers.Dense(output_size, name="dense2"),
        ],
        name="mnistnn",
    )


_OWN: Final[dict[str, Callable[..., Any]]] = {"cnn": cnn, "mnistnn": mnistnn}


def build(spec: ModelSpec, *, seed: int) -> Any:
    """A new Keras model with initial weights drawn from `seed`, compiled with a loss.

    A `module:function` is called with those fields of ModelSpec that it has parameters for, or with none,
    and returns a Keras model of one input and one output. If that is compiled with a loss, the loss is
    kept; else it is the sparse categorical cross-entropy over logits, or over probabilities if the last
    layer is a softmax. Its optimizer, if any, is not used: the task names the optimizer.

    Raises TaskError: unknown name, nothing to import, not a model, or a shape the layers cannot take.
    """
    keras.utils.set_random_seed(seed % 2**32)
    make = _OWN.get(spec.name) or _imported(spec.name)
    try:
        model = make(**_accepted(make, spec))
        if isinstance(model, keras.Model) and not model.built:
            model.build((None, *spec.input_shape))
    except ValueError as exc:  # how Keras says that layers and shapes do not fit
        problem = str(exc).splitlines()[0]
        raise TaskError(f"model {spec.name!r} for input {list(spec.input_shape)}: {problem}") from exc
    if not isinstance(model, keras.Model):
        raise TaskError(f"model {spec.name!r} returned {type(model).__name__}, not a Keras model")
    if model.loss is None:
        model.compile(
            optimizer="sgd",  # has no state; never used
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not _ends_in_softmax(model)),
        )
    return model


def weights_of(model: Any) -> dict[str, NDArray[np.generic]]:
    """Copies of all weights, trained or not (moving averages, say), by name: "00:conv1/kernel".

    The number is the position in the model; Keras' own running numbers ("conv2d_3") are cut off, because
    they depend on what else the process has built.
    """
    return {name: numpy_of(variable) for name, variable in zip(_names(model), model.weights, strict=True)}


def numpy_of(variable: Any) -> NDArray[np.generic]:
    """A copy of a Keras variable's value."""
    return np.array(variable.value.numpy())


def set_weights(model: Any, tensors: Tensors) -> None:
    """Give the model these weights. Raises TaskError if names, shapes or dtypes are not the model's."""
    wanted = {
        name: Shape(dims=tuple(variable.shape), dtype=str(variable.dtype))
        for name, variable in zip(_names(model), model.weights, strict=True)
    }
    found = shapes(tensors)
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
        raise TaskError(
            f"weights do not fit the model: {odd!r} is {found.get(odd, 'missing')},"
            f" the model has {wanted.get(odd, 'none')}"
        )
    for name, variable in zip(wanted, model.weights, strict=True):
        variable.assign(tensors[name])


def _names(model: Any) -> list[str]:
    width = max(2, len(str(len(model.weights) - 1)))
    names = []
    for index, variable in enumerate(model.weights):
        path = "/".join(re.sub(r"_\d+$", "", part) for part in variable.path.split("/")[-2:])
        names.append(f"{index:0{width}d}:{path}")
    return names


def _imported(name: str) -> Callable[..., Any]:
    if ":" not in name:
        near = difflib.get_close_matches(name, _OWN, n=1)
        raise TaskError(
            f"unknown model {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"{', '.join(_OWN)}, or module:function",
        )
    try:
        made = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise TaskError(
            f"model {name!r} cannot be imported: {exc}", hint="is the file among the function's includes?"
        ) from exc
    if not callable(made):
        raise TaskError(f"model {name!r} is a {type(made).__name__}, not a function that returns a model")
    return made  # type: ignore[no-any-return]


def _accepted(make: Callable[..., Any], spec: ModelSpec) -> dict[str, Any]:
    fields = {
        "input_shape": tuple(spec.input_shape),
        "hidden_size": spec.hidden_size,
        "output_size": spec.output_size,
    }
    return {name: fields[name] for name in inspect.signature(make).parameters if name in fields}


def _ends_in_softmax(model: Any) -> bool:
    last = model.layers[-1]
    return isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", None) is keras.activations.softmax
    )
