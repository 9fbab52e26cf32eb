"""The features of tf.train.Examples, as other tools put them into ArrayRecord files."""

from functools import cache
from typing import Any

from filip_jax.data.record import BadRecord
from filip_jax.data.values import advice

Values = list[bytes] | list[int | float] | int | float  # of a feature; a number alone, as a label is, has no list


@cache
def _example_and_error() -> tuple[Any, type[Exception]]:
    """Return the class of Examples and what it raises for rubbish; TensorFlow Datasets is imported only where data has some."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2.Example, DecodeError


def features_of(data: bytes) -> dict[str, Values]:
    """Return the features of a serialised Example by name. Raises BadRecord if it is none."""
    example, decode_error = _example_and_error()
    try:
        features = example.FromString(data).features.feature
    except decode_error as error:
        raise BadRecord("neither a record of filip_jax nor a tf.train.Example") from error
    found = {}
    for name, feature in sorted(features.items()):
        numbers = [*feature.int64_list.value, *feature.float_list.value]
        values = list(feature.bytes_list.value) or numbers
        found[name] = values[0] if len(numbers) == 1 else values
    return found


def say_features(features: dict[str, Values]) -> str:
    """Return the names of features and what they hold, for people."""
    return f"the features {', '.join(f'{name} ({_kind(values)})' for name, values in features.items()) or 'none'}"


def image_advice(features: dict[str, Values]) -> str:
    """Return which option names a feature that may hold images."""
    return advice("image", [name for name, values in features.items() if _kind(values) == "bytes"], are_fit=True)


def _kind(values: Values) -> str:
    first = next(iter(values), b"") if isinstance(values, list) else values
    return "bytes" if isinstance(first, bytes) else "numbers" if isinstance(values, list) else "a number"
