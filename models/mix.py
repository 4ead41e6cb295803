"""Questions to learn on and to be judged on: a frozen mix of classes, and what is visible of each question before it starts.

crowd = draw(mix(), 12_000, TRAIN)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml
from scipy.special import ndtri

from models.batch_rollout import beam, samples
from models.crowd import crowds
from models.keyed import Keys, mix_array, root_keys, uniform_array
from models.question import question_model
from models.switch import BEAMS, MAX_STEPS, size
from models.verifier import VerifierModel, verifier_model
from models.world import DIFFICULTY, QuestionModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TRAIN, CALIBRATE, HOLD_OUT, CHECK = (
    101,
    102,
    103,
    104,
)  # random streams: no question is in two of them
HINT: Final = 0x48494E54  # purpose of the noise of the difficulty hint
MOST: Final = 64  # trajectories grown of each question


@dataclass(frozen=True, slots=True)
class Mix:
    """Classes by name with their shares, and how much a hint tells of the difficulty (R2)."""

    shares: Mapping[str, float]
    informativeness: float
    source: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return tuple(self.shares)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Questions with `MOST` whole answers each, and a search by each of `BEAMS`.

    Arrays are (questions,), (questions, MOST) or, of beams, (questions, len(BEAMS)). `hint` is the noisy normal
    score of the latent difficulty (higher is easier), `wrong` is 0 where right.
    """

    klass: Ints
    key: Keys
    hint: Floats
    pass_rate: Floats
    steps: Ints
    wrong: Ints
    score: Floats
    tokens: Ints
    beam_wrong: Ints
    beam_score: Floats
    beam_tokens: Ints

    def __len__(self) -> int:
        return len(self.klass)

    def of(self, rows: npt.NDArray[Any]) -> Drawn:
        """The questions in these rows alone."""
        return Drawn(*(getattr(self, name)[rows] for name in self.__slots__))


@lru_cache(maxsize=1)
def mix() -> Mix:
    """The frozen mix of models/mix.yaml."""
    found = yaml.safe_load(Path(__file__).with_name("mix.yaml").read_text(encoding="utf-8"))
    told = found["informativeness"]
    shares = {str(name): float(share) for name, share in found["classes"].items()}
    assert math.isclose(sum(shares.values()), 1.0), "the shares of the mix do not add up"
    return Mix(MappingProxyType(shares), float(told["default"]), str(told["source"]))


def questions_of(name: str) -> tuple[QuestionModel, VerifierModel]:
    """A class of questions and the verifier that its preset names."""
    model = question_model(name)
    return model, verifier_model(model.verifier)


def hints(keys: Keys, informativeness: float) -> Floats:
    """A noisy look at the difficulty of questions: a normal score whose R2 with the latent one is given.

    The noise is keyed, so the same question always looks the same. Raises ValueError outside [0, 1].
    """
    if not 0.0 <= informativeness <= 1.0:
        raise ValueError(f'"informativeness" must lie in [0, 1], got {informativeness}.')
    latent: Floats = ndtri(uniform_array(keys, DIFFICULTY))
    noise: Floats = ndtri(uniform_array(mix_array(keys ^ np.uint64(HINT)), DIFFICULTY))
    return math.sqrt(informativeness) * latent + math.sqrt(1.0 - informativeness) * noise


def draw(
    chosen: Mix,
    n: int,
    stream: int,
    seed: int = 0,
    informativeness: float | None = None,
    verifiers: Mapping[str, VerifierModel] | None = None,
) -> Drawn:
    """Draw about `n` questions of a mix with their answers; `verifiers` replace those of the presets.

    Beams are grown beside the whole answers, not from them: all that is seen of the one is news to the other.
    """
    told = chosen.informativeness if informativeness is None else informativeness
    parts: list[Drawn] = []
    for number, (name, share) in enumerate(chosen.shares.items()):
        model, verifier = questions_of(name)
        count = round(n * share)
        keys = root_keys(seed, number, stream, count)
        verifier = (verifiers or {}).get(name, verifier)
        grown = samples(model, verifier, keys, MOST)
        klass = np.full(count, number, dtype=np.int64)
        parts.append(
            Drawn(
                klass,
                keys,
                hints(keys, told),
                grown.difficulty,
                grown.steps,
                grown.wrong,
                grown.score,
                grown.tokens,
                *beams_of(model, verifier, keys),
            )
        )
    return Drawn(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in Drawn.__slots__)
    )


def beams_of(
    model: QuestionModel, verifier: VerifierModel, keys: Keys, first: int = MOST
) -> tuple[Ints, Floats, Ints]:
    """The answer (0: right), score and tokens of each of `BEAMS`, all (questions, len(BEAMS)).

    The children of the prompt are numbered from `first` on.
    """
    shape = (len(keys), len(BEAMS))
    wrong, tokens = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    score = np.empty(shape)
    for number, (width, expand) in enumerate(BEAMS):
        params = {"width": width, "expand": expand, "max_steps": MAX_STEPS}
        for places, crowd in crowds(model, verifier, keys, size(number)):
            found, wrong[places, number] = beam(crowd, params, first)
            score[places, number], tokens[places, number] = found.signal, found.tokens
    return wrong, score, tokens
