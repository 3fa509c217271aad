"""`hydra/launcher=serial` and `fused`: all jobs of a sweep in this process, one by one or side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from omegaconf import open_dict

from hydra_plugins.frl.composing import ComposingLauncher, ended, shown

for _name, _class in (("serial", "SerialLauncher"), ("fused", "FusedLauncher")):
    _node = {"_target_": f"{__name__}.{_class}"}
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="frl_repro")

_LOGGER = logging.getLogger(__name__)


class SerialLauncher(ComposingLauncher):
    """Jobs one by one, as Hydra's own launcher does them, but what a job leaves in memory goes with it.

    Hydra's keeps the settings of every job until the last has ended: a quarter more memory after a thousand jobs.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs."""
        setup_globals()
        logging_settings = self._config.hydra.hydra_logging, self._config.hydra.verbose
        configure_log(*logging_settings)
        for index, overrides in enumerate(job_overrides, start=initial_job_idx):
            _LOGGER.info("#%d : %s", index, shown(overrides))
            config = self._compose(overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = index
            _ = run_job(
                task_function=self._task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=self._context,
            ).return_value  # raises what the job raised
            configure_log(*logging_settings)
        return ended(job_overrides)


class FusedLauncher(ComposingLauncher):
    """All jobs at once: the task's ``together`` has those side by side that can be."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        """Run the jobs."""
        setup_globals()
        self._task.together(list(self._jobs(job_overrides)))
        return ended(job_overrides)
