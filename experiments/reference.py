"""Prints every setting that a config may hold: what it is an argument of, its default and what is allowed.

python -m experiments.reference > docs/settings.md
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffad_jax import assembly, losses, samplers, scores
from diffad_jax.build import in_words
from diffad_jax.calibration import COMBINATIONS
from diffad_jax.data.dataset import PROTOCOLS
from diffad_jax.data.loading import LOADERS
from diffad_jax.data.npz_pictures import SETTINGS
from diffad_jax.data.pictures import FITS, ON_ERROR
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.data.transform_kinds import KINDS
from diffad_jax.evaluation import MEMORY
from diffad_jax.models.dit import SIZES
from diffad_jax.models.layers import REMAT
from diffad_jax.parametrisation import PREDICTS, VARIANCES, make_denoise
from diffad_jax.ranges import CHOICES, LISTS, RANGES
from diffad_jax.settings import MeshSize, Scoring
from diffad_jax.table import grid
from diffad_jax.training import Training, make_optimizer
from experiments import cli

# By section, what its `name` may be; of sections that mean one thing alone, this.
CHOSEN: dict[str, Mapping[str, Callable[..., Any]]] = {
    "data": LOADERS,
    "transform": {name: kind.fit for name, kind in KINDS.items()},
    "process": assembly.PROCESSES,
    "model": assembly.MODELS,
    "loss": assembly.OBJECTIVES,
    "sampler": assembly.SAMPLERS,
    "decoder": assembly.DECODERS,
    "score": assembly.SCORES,
}
FIXED: dict[str, Callable[..., Any]] = {
    "denoiser": make_denoise,
    "optimizer": make_optimizer,
    "training": Training,
    "scoring": Scoring,
    "pipeline": Pipeline,
    "mesh": MeshSize,
}
# What the program supplies.
GIVEN = {
    "transform": ("train",),
    "model": ("learned_variance", "parent", "name"),
    "loss": ("process", "decoder", "sigma_data"),
    "sampler": ("process",),
    "score": ("process", "sampler", "decoder", "size"),
    "denoiser": ("process", "network"),
    "optimizer": ("num_steps",),
}
# Words that the targets themselves check.
WORDS: dict[str, Iterable[str]] = {
    **CHOICES,
    "data.fit": FITS,
    "data.on_error": ON_ERROR,
    "data.protocol": PROTOCOLS,
    "data.setting": SETTINGS,
    "model.remat": REMAT,
    "model.size": SIZES,
    "denoiser.predicts": PREDICTS,
    "loss.variance": VARIANCES,
    "loss.weighting": losses.WEIGHTINGS,
    "sampler.variance": VARIANCES,
    "score.distance": scores.DISTANCES,
    "score.grid": samplers.GRIDS,
    "score.variance": VARIANCES,
    "scoring.combination": (*COMBINATIONS, MEMORY),
}
HEAD = """# Every setting of a config

Printed by `python -m experiments.reference`. A config is a file with a function `get_config()` that returns an
`ml_collections.ConfigDict` of the sections below. A section with a `name` chooses one of several things; its other keys are
the arguments of that thing, and what is left out has the default. `--config.section.key=value` of `experiments.train` sets
one from the command line. Beside the sections stand `config.seed`, a whole number from 0 up to 2^32 - 1, and
`config.parallel`, "jit" or "pmap". `data`, `pipeline`, `parallel` and `mesh` may be left out. Each part is followed by its
docstring, in which the arguments that the program supplies (`process`, `sampler`, `size`, ...) are named as well.

"""


def settings(section: str, target: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    """The arguments of a target that a config may set, in order."""
    given = GIVEN.get(section, ())
    return [(name, p) for name, p in inspect.signature(target).parameters.items() if name not in given]


def allowed(path: str, parameter: inspect.Parameter) -> str:
    """What a setting may be."""
    if path in WORDS:
        return ", ".join(WORDS[path])
    if path not in RANGES:
        return in_words(parameter.annotation)
    whole = "" if "float" in str(parameter.annotation) else "whole "
    return (
        f"{'lists of ' if path in LISTS else ''}{whole}{RANGES[path]}{' or None' if parameter.default is None else ''}"
    )


def described(section: str, target: Callable[..., Any]) -> str:
    """One target: its place in the package, its settings, and its docstring."""
    place = f"{target.__module__}.{target.__qualname__}"
    lines = [
        [f"`{name}`", "" if p.default is p.empty else f"`{p.default!r}`", allowed(f"{section}.{name}", p)]
        for name, p in settings(section, target)
    ]
    table = grid(["argument", "default", "allowed"], lines).replace("---:", "---") if lines else "No settings.\n"
    return f"`{place}`\n\n{table}\n```text\n{inspect.getdoc(target)}\n```\n\n"


def text() -> str:
    """The whole page."""
    page = HEAD
    for section, choices in CHOSEN.items():
        page += f"## config.{section}\n\n"
        page += "".join(f"### {name}\n\n{described(section, target)}" for name, target in choices.items())
    return page + "".join(f"## config.{section}\n\n{described(section, target)}" for section, target in FIXED.items())


def main(_: list[str]) -> None:
    print(text().rstrip("\n"))


if __name__ == "__main__":
    cli.run(main)
