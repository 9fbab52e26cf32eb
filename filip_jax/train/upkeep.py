"""A workdir that stays usable while its run goes on, or a run that says that it is not."""

import contextlib
import warnings
from collections.abc import Iterator

import jax

from filip_jax import storage
from filip_jax.checkpoint.manifest import FILE as MANIFEST
from filip_jax.cluster import service
from filip_jax.errors import UserError
from filip_jax.saved_config import FILE as CONFIG
from filip_jax.saved_config import TOKENIZER
from filip_jax.train.lease import Lease
from filip_jax.workdir import Workdir


class Upkeep:
    """Looks at a workdir, which others may move, remove or empty, at each save and at the end of a run.

    Args:
        place: the workdir, in which the config and the tokenizer are written.
        lease: of this process.
    """

    def __init__(self, place: Workdir, lease: Lease):
        self.place, self.lease = place, lease
        first = jax.process_index() == 0
        self.files = {name: (place.folder / name).read_bytes() for name in (CONFIG, TOKENIZER) if first}

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Replace an error of the block by `look`'s UserError if the workdir is gone."""
        try:
            yield
        except (OSError, UserError):
            with contextlib.suppress(OSError):  # of the disk that has just failed
                self.lease.check()
            raise

    def look(self) -> None:
        """Writes again what a checkpoint needs to be used and somebody removed. For the first process.

        Raises:
            UserError: the workdir was moved, removed or taken by another run.
            OSError: the disk or the bucket fails.
        """
        self.lease.check()
        if missing := self.place.write_missing(self.files):
            warnings.warn(f"{self.place.name} had lost {', '.join(missing)}: written again", stacklevel=2)

    def before_manifest(self) -> None:
        """Brings the lines of a checkpoint's steps into a bucket, if the workdir is still ours. Raises as `look` does."""
        self.lease.check()
        self.place.flush()

    def has_lost(self, step: int | None) -> bool:
        """Return on all processes, which all call this, whether the checkpoint that was saved of this step is gone.

        Step 0 needs none.

        Raises:
            UserError: the disk or the bucket fails.
        """
        lost: list[bool] = []
        service.on_first_process(
            lambda: lost.append(step is not None and step > 0 and not storage.exists(self._manifest(step)))
        )
        return service.of_first_process(lost == [True])

    def check_usable(self, step: int) -> None:
        """The last word of a run. For the first process.

        Args:
            step: of the newest checkpoint; 0 needs none.

        Raises:
            UserError: something that a checkpoint needs to be used is missing.
        """
        needed = [storage.join(self.place.name, name) for name in self.files]
        for path in needed + ([self._manifest(step)] if step else []):
            if not storage.exists(path):
                raise UserError(
                    f"{path} is gone: {self.place.name} was moved, removed or emptied while the run ended. Bring the "
                    "folder back, then the same command goes on"
                )

    def _manifest(self, step: int) -> str:
        return storage.join(self.place.checkpoints, f"{step}/{MANIFEST}")
