"""What a family finds in a folder: our config for it, the table of its names, and the evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.weights.mapping import Rule
from filip_jax.weights.stored import Stored

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class Evidence(NamedTuple):
    """A choice, and the file and key, shapes or default that it follows."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Found:
    """What a source holds beside its tensors.

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
            raise UserError(f"{self.place} has no {name!r}: its weights are of another family, or not whole")
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
        words: (found, ids, the file that --tokenizer names) -> the section `tokenizer` and its evidence.
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
    words: Callable[[Found, int, str], tuple[dict[str, Any], list[Evidence]]] | None = None
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
        config: (the JSON files of a folder) -> the words that say why it is of this family, or "".
        names: (names of tensors) -> whether they are this family's.
        files: names of its weights in a folder, the first that is there counts.
        plan: what to do with a source.
    """

    config: Callable[[Mapping[str, Mapping[str, Any]]], str]
    names: Callable[[Mapping[str, Stored]], bool]
    files: Sequence[str]
    plan: Callable[[Found], Plan]
