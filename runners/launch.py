"""The launchers of a sweep: Hydra's interface, chosen by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners.composition import CONF
from runners.job import Ended, of_cluster
from runners.local import LocalLauncher, More
from zobench.config import ConfigError, nearest

LAUNCHERS = ("local", "slurm")
PLUGIN = "hydra_plugins.hydra_submitit_launcher"


class Launch:
    """Runs jobs with a launcher.

    Args:
        name: of `LAUNCHERS`.
        options: ``key=value`` of the launcher, as in conf/hydra/launcher.
        jobs: how many at a time; None is as many as the launcher likes.
        out: folder of the records.

    Raises:
        ConfigError: there is no such option, or the launcher is not to be had here.
    """

    def __init__(self, name: str, options: Sequence[str], jobs: int | None, out: Path) -> None:
        self._n = 0
        self._launcher: Launcher
        self._wait_for: str | None = None
        if name == "local":
            if options:
                raise ConfigError([f"launcher.{text}: launcher=local has no options but jobs" for text in options])
            self._launcher = LocalLauncher(jobs)
        else:
            self._slurm(options, jobs, out)

    def wait_for_earlier(self) -> None:
        """Until jobs are over that an earlier start of the sweep submitted, and left."""
        if self._wait_for is not None:
            from runners.slurm import wait_for

            wait_for(self._wait_for)

    def __call__(self, jobs: Sequence[Sequence[str]], more: More | None = None) -> list[Ended]:
        """Run all; how each ended.

        Args:
            more: see `local.More`; a cluster, which gets all jobs at once, does not ask.
        """
        if isinstance(self._launcher, LocalLauncher):
            self._launcher.more = more
        returned: Sequence[JobReturn] = self._launcher.launch([list(overrides) for overrides in jobs], self._n)
        self._n += len(returned)
        return [each.return_value for each in returned]

    def _slurm(self, options: Sequence[str], jobs: int | None, out: Path) -> None:
        if not _installed(PLUGIN):
            raise ConfigError(["launcher=slurm: needs hydra-submitit-launcher; pip install 'zobench[slurm]'"])
        from runners import slurm

        if (problem := slurm.problem()) is not None:
            raise ConfigError([problem])
        self._wait_for = slurm.name_of(out)
        ours = [f"hydra.launcher.name={self._wait_for}", f"hydra.sweep.dir={out.absolute()}"]
        ours += [f"hydra.launcher.array_parallelism={jobs}"] if jobs else []
        asked = [f"hydra.launcher.{text}" for text in options]
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base=None):
            main = GlobalHydra.instance().hydra
            assert main is not None
            try:
                config = main.compose_config(
                    config_name="run", overrides=["hydra/launcher=slurm", *ours, *asked], run_mode=RunMode.MULTIRUN,
                    with_log_configuration=False,
                )  # fmt: skip
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError([_option_problem(asked, error)]) from error
            context = HydraContext(config_loader=main.config_loader, callbacks=Callbacks())
        keys = [str(key) for key in config.hydra.launcher if key != "_target_"]
        resolved = {key: OmegaConf.select(config, f"hydra.launcher.{key}") for key in keys}
        self._launcher = slurm.SlurmLauncher(**resolved)
        self._launcher.setup(hydra_context=context, task_function=of_cluster, config=config)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _option_problem(asked: Sequence[str], error: Exception) -> str:
    """In terms of the option that is not understood."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    known = sorted(vars(SlurmQueueConf()))
    for text in asked:
        key = text.removeprefix("hydra.launcher.").split("=")[0].split(".")[0]
        if key not in known:
            return f"launcher.{key}: no such option; there are {', '.join(known)}{nearest(key, known)}"
    cause = error.__cause__ or error
    return f"launcher: {str(cause).splitlines()[0]}"
