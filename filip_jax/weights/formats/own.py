"""Everything of a run in one folder: parameters by our paths, the sections of the config, the tokenizer."""

from filip_jax.inference.run import TOKENIZER
from filip_jax.redact import redacted
from filip_jax.saved_config import FORMAT
from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.families.own import CONFIG, MODEL_TYPE, WEIGHTS, rules
from filip_jax.weights.transformers_files import as_json

USAGE = """# filip import "FOLDER" --output=runs/again
from filip_jax import load_model
model = load_model("runs/again")"""


def misfits(run: ExportedRun) -> list[str]:
    """Return nothing: it is the run's own model."""
    return []


def make(run: ExportedRun) -> Target:
    """Return the folder."""
    sections = {name: run.config.get(name, {}) for name in ("model", "objectives", "tokenizer")}
    content = {"model_type": MODEL_TYPE, "format": FORMAT, **redacted(sections)}
    return Target(
        family="own",
        weights=WEIGHTS,
        rules=rules(run.parameters),
        files={CONFIG: as_json(content), TOKENIZER: run.tokenizer.model},
        library="filip_jax",
        usage=USAGE,
        is_whole=True,
    )
