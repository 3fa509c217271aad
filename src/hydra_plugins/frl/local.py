"""`hydra/launcher=serial` and `fused`: all jobs of a sweep in this process, one by one or together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, env_override, setup_globals

from hydra_plugins.frl.base import JobLauncher, ended

for _name, _class in (("serial", "SerialLauncher"), ("fused", "FusedLauncher")):
    _node = {"_target_": f"{__name__}.{_class}"}
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="frl_repro")

_LOGGER = logging.getLogger(__name__)


class SerialLauncher(JobLauncher):
    """Jobs one by one, as Hydra's own launcher does them, but nothing of a job stays in memory.

    Hydra's composes every job anew and keeps its settings until the last has ended: a quarter more memory after a
    thousand jobs.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs."""
        setup_globals()
        settings = self._config.hydra
        configure_log(settings.hydra_logging, settings.verbose)
        with env_override({str(name): str(value) for name, value in settings.job.env_set.items()}):
            for index, job in enumerate(self._jobs(job_overrides, initial_job_idx), start=initial_job_idx):
                _LOGGER.info("#%d : %s", index, job.shown)
                self._task.do_here([job])
        return ended(job_overrides)


class FusedLauncher(JobLauncher):
    """All jobs at once: the task has those trained together that can be."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs."""
        setup_globals()
        self._task.do_here(self._jobs(job_overrides, initial_job_idx))
        return ended(job_overrides)
