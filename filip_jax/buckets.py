"""Orbax on gs:// and s3://: what it needs beyond a local folder. To be called before its first checkpointer."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils

from filip_jax.errors import UserError

BUILD = "build_kvstore_tspec"  # every read, write and merge of Orbax gets its place in a store from here


def prepare(directory: str) -> dict[str, Any]:
    """Keyword arguments of ocp.AsyncCheckpointer for checkpoints in `directory`, local or in a bucket.

    Orbax reads and writes gs:// by itself; TensorStore below it, though, does not follow the emulator's
    variable. For s3:// it has no case, while TensorStore has the driver: here it gets one.

    Raises:
        UserError: an Orbax that cannot be taught s3://.
    """
    if directory.startswith("gs://") and (host := os.environ.get("STORAGE_EMULATOR_HOST")):
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = host if "://" in host else f"http://{host}"
    if not directory.startswith("s3://"):
        return {}
    build = getattr(tensorstore_utils, BUILD, None)
    if build is None:
        raise UserError(f"{directory}: orbax-checkpoint {ocp.__version__} keeps no checkpoints on s3://; 0.12.8 does")
    if not isinstance(build, partial):
        setattr(tensorstore_utils, BUILD, partial(_build, build))
    # A folder cannot be renamed there: the files stay where they are written, and a last one says that they are all.
    options = ocp.options
    return {"atomicity_options": options.AtomicityOptions(options.AtomicityMode.COMMIT_FILE)}


def _build(plain: Callable[..., dict[str, Any]], directory: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the place of arrays that Orbax's own `plain` gives; on s3:// that of gs:// with the other driver."""
    if not directory.startswith("s3://"):
        return plain(directory, *arguments, **options)
    place = plain(f"gs://{directory.removeprefix('s3://')}", *arguments, **options)
    place.get("base", place).update(_s3_driver())
    return place


def _s3_driver() -> dict[str, Any]:
    """TensorStore's driver where s3fs goes, too: AWS, or the endpoint of the environment."""
    driver: dict[str, Any] = {"driver": "s3"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        driver |= {"endpoint": endpoint, "aws_region": region}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # else a search for other credentials complains on stderr
        driver |= {"aws_credentials": {"type": "environment"}}
    return driver
