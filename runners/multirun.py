"""The runs a command line stands for, and the command line of a run."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

_MULTIRUN = ("-m", "--multirun")
_ASKS = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


def command_of(arguments: Sequence[str]) -> str:
    """The command line that runs these arguments alone, to be pasted into a shell."""
    return f"python -m runners.train {shlex.join(arguments)}"


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each job; none where the command only asks for help. Without -m, one job."""
    if any(a.split("=")[0] in _ASKS for a in arguments):
        return []
    overrides = _overrides(arguments)
    if not any(a in _MULTIRUN for a in arguments):
        return [overrides]
    return expand(overrides)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the comma-separated values of overrides."""
    choices: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            choices.append([text])  # composing says what is wrong with it
            continue
        choices.append(_values(override) if override.is_sweep_override() else [text])
    return [list(job) for job in itertools.product(*choices)]


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments without Hydra's own options and their values."""
    found, skip = [], False
    with_value = (
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
        "--package",
        "-p",
        "--cfg",
        "-c",
    )
    for argument in arguments:
        if skip:
            skip = False
        elif argument in with_value:
            skip = True
        elif not argument.startswith("-"):
            found.append(argument)
    return found
