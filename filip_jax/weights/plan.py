"""What a family finds in a folder: our config for it, the table of its names, and the evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.weights.mapping import Rule
from filip_jax.weights.stored import Stored


class Evidence(NamedTuple):
    """What is chosen, its value, and the file and key, shapes or default that it follows."""

    choice: str
    value: str
    origin: str


@dataclass(frozen=True)
class ModelSource:
    """A public model as it is given: its tensors, and what its folder says of them.

    Attributes:
        place: the source.
        folder: whose files may be read, None where the source is a file.
        configs: the JSON files of the folder by name.
        tensors: of the weights.
        model: the option --model.
    """

    place: Path
    folder: Path | None
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Stored]
    model: str = ""

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            UserError: it is missing or has another number of dimensions.
        """
        if name not in self.tensors:
            other = f" but names such as {next(iter(self.tensors))!r:.100}" if self.tensors else ""
            raise UserError(f"{self.place} has no {name!r}{other}: its weights are of another family, or not whole")
        shape = self.tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise UserError(f"{self.place}: {name!r} of shape {list(shape)} should have {dimensions} dimensions")
        return shape


@dataclass(frozen=True)
class Plan:
    """How the weights of a source become a run.

    Attributes:
        image, text: the sections of the towers; text is None for a model of images alone.
        embed_dim: of the shared space.
        objectives: the section; of models without a text tower none is the source's.
        rules: the table of names.
        words: (source, ids, the file that --tokenizer names) -> the section `tokenizer` and its evidence.
        evidence: of the choices.
        ignored: (regular expression of whole names, what they are) of tensors that no tower has.
        differs: what is computed otherwise here.
        similarity: which tokens take part in it, options of the section `model`, where the source tells.
        tokenizer: the tokenizer, its section and the evidence, where `words` is not asked.
        eos_id: the id at which the source pools a text whose pooling is "eos"; None if at the largest of its ids.
        view: pixels of the images that the source's preprocessing makes and what states them; None if nothing does.
        antialias: whether the source's own code antialiases positions when it resamples them, see `at_size`.
    """

    image: dict[str, Any]
    text: dict[str, Any] | None
    embed_dim: int
    objectives: dict[str, Any]
    rules: Sequence[Rule]
    evidence: Sequence[Evidence]
    words: Callable[[ModelSource, int, str], tuple[dict[str, Any], list[Evidence]]] | None = None
    ignored: Sequence[tuple[str, str]] = ()
    differs: Sequence[str] = field(default_factory=list)
    similarity: dict[str, bool] = field(default_factory=dict)
    tokenizer: tuple[Tokenizer, dict[str, Any], list[Evidence]] | None = None
    eos_id: int | None = None
    view: tuple[int, str] | None = None
    antialias: bool = False


class Family(NamedTuple):
    """A family of models whose names and configs are alike.

    Attributes:
        config: the JSON file by which its folders are known.
        model_types: of its folders, as that file states it; none where the file alone tells.
        names: (names of tensors) -> whether they are this family's.
        files: names of its weights in a folder, the first that is there counts.
        plan: what to do with a source.
    """

    config: str
    model_types: Sequence[str]
    names: Callable[[Mapping[str, Stored]], bool]
    files: Sequence[str]
    plan: Callable[[ModelSource], Plan]

    def origin(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """Return the file and key by which the JSON files of a folder are this family's; "" if they are not."""
        if not self.model_types:
            return f"{self.config} is there" if self.config in configs else ""
        model_type = configs.get(self.config, {}).get("model_type")
        return f"{self.config}: model_type={model_type}" if model_type in self.model_types else ""
