"""The run that benchmarks/chaos.py breaks: small, and slow where the environment variable CHAOS says.

CHAOS=data|save|evaluation stretches that phase; PHASES=FILE keeps the phases that the run enters, so
that whoever breaks it can meet it there. Both patch this process only: nothing of it is in the package.
"""

import os
import runpy
import time
from pathlib import Path

from ml_collections import ConfigDict

SLOW = float(os.environ.get("CHAOS_SECONDS", "3"))


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).parents[1] / "configs/demo.py"))["get_config"]("quick")
    config.unlock()
    config.batch_size, config.total_steps, config.log_every_steps, config.log_keys = 16, 200, 1, True
    config.checkpoint = dict(every_steps=10, every_minutes=0.0, keep_last=2, keep_every_steps=0)
    config.processes.update(heartbeat_seconds=10, hang_seconds=60.0, start_seconds=30)
    config.optimizer.warmup_steps, config.tokenizer.captions, config.model.embed_dim = 10, 500, 16
    config.model.scan = True
    for tower in ("image", "text"):
        config.model[tower].update(width=32, depth=2, heads=2)
    config.eval_every_steps = 20
    val = config.evals.val.source.to_dict() | {"scenes": 32}
    config.evals = dict(val=dict(kind="retrieval", source=val, examples=32))
    return config


def _keep_phases(file: Path) -> None:
    from filip_jax.cluster.watch import Watch

    phase = Watch.phase

    def kept(self, name):
        with file.open("a") as stream:
            stream.write(f"{name}\n")
        return phase(self, name)

    Watch.phase = kept


def _slow(owner, name: str) -> None:
    function = getattr(owner, name)

    def slowly(*arguments, **options):
        time.sleep(SLOW)
        return function(*arguments, **options)

    setattr(owner, name, slowly)


def _stretch(phase: str) -> None:
    if phase == "data":
        from filip_jax.data.pipeline import Samples

        _slow(Samples, "__getitem__")
    elif phase == "save":
        import filip_jax.checkpoint.writer as writer

        _slow(writer.ocp.AsyncCheckpointer, "save")
        _slow(writer, "write_manifest")
    elif phase == "evaluation":
        from filip_jax.evals import retrieval

        _slow(retrieval, "evaluate")


if "PHASES" in os.environ:
    _keep_phases(Path(os.environ["PHASES"].replace("%", os.environ.get("JAX_PROCESS_ID", "0"))))
_stretch(os.environ.get("CHAOS", ""))
if limit := int(os.environ.get("CHAOS_FILE_LIMIT", "0")):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
