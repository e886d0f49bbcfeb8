"""What all stages share: the config, the plan, and the frame around each step.

`pattern(path)` stands for the artifacts of a rule (lib/run/pattern.py). Its members serve the
rule's sections: `wanted` is the wanted recipe, or nothing if the artifact is fresh
(lib/planning/handoff.py); `path`, `record`, `log` and `benchmark` are paths.
`made_from(pattern, role)` is the input function for an input of the artifact.
"""

import sys
from functools import partial
from logging.handlers import QueueHandler
from shlex import quote

from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.resources import Resource
from snakemake.shell import shell as snakemake_shell

sys.path.insert(0, f"{workflow.basedir}/scripts")

with_conda = "conda" in map(str, workflow.deployment_settings.deployment_method)
if workflow.is_main_process:
    from lib.record import packages

    packages.insist(packages.PLANNING if with_conda else None)

from lib.forecast.machine import Machine, gpu_memory_mb, rules_on_gpu
from lib.run.console import is_news
from lib.run.pattern import Pattern
from lib.run.session import Session

# The conda environment's Python where there is one, else the one that runs Snakemake.
python = "python" if with_conda else quote(sys.executable)
on_gpu = rules_on_gpu(workflow.resource_settings.overwrite_resources or {})
if workflow.resource_settings.nodes is not None:
    # Jobs go to a cluster: `cores: all` of profiles/default counts this host's cores, and Snakemake
    # (9.27.1) would apply that to the nodes.
    workflow.resource_settings.cores = sys.maxsize
    workflow.global_resources["_cores"] = Resource("_cores", sys.maxsize)
    machine = Machine(None, on_gpu, nodes=workflow.nodes)
elif not workflow.is_main_process:  # for one job of a cluster
    machine = Machine(None, on_gpu)
else:
    # Steps share GPUs by their memory, unless the user has said how much of it they may use.
    gpu_mb = workflow.global_resources.get("gpu_mb")
    available = gpu_mb.value if gpu_mb else gpu_memory_mb() if on_gpu else None
    if available:
        workflow.global_resources["gpu_mb"] = Resource("gpu_mb", available)
    machine = Machine(workflow.cores or 1, on_gpu, available)

scripts = quote(f"{workflow.basedir}/scripts")
snakemake_shell.prefix(
    # Threads that wait must sleep: spinning, OpenMP's default, makes small steps many times slower
    # on a busy machine.
    f"set -euo pipefail; export OMP_WAIT_POLICY=PASSIVE QM_PYTHON={python} QM_SCRIPTS={scripts}; "
    f". {scripts}/step.sh; . {scripts}/gpus.sh; "
)


async def refuse_none(job):
    """Let a job replace write-protected output: what is linked to a store is (handoff.py, 9)."""


Job.check_protected_output = refuse_none

# Logger plugins (--logger) hear of all that happens.
for handler in logger.handlers:
    if not isinstance(handler, QueueHandler):
        handler.addFilter(is_news)

session = Session(
    config,
    lambda: workflow.dag_settings,
    workflow.is_main_process,
    machine,
    builds=lambda: not workflow.dryrun,
)

pattern = partial(Pattern, session)


# A study's candidates and the models that it merges have directories as models have them.
wildcard_constraints:
    model="[^/]+|studies/[^/]+/(candidates|parents)/[^/]+",
    quant="[^/]+",
    form="[^/]+",


def made_from(made, *roles):
    """The input function for an artifact's inputs in these roles; none if the artifact is fresh.

    made: the rule's pattern. No input is marked ancient(): lib/planning/handoff.py, 3.
    """
    return lambda wildcards: [up.path for up in made.inputs(wildcards, *roles)]


def needs(made):
    """{resource: function} for `resources:`: mem_mb, disk_mb and gpu_mb in MiB, runtime in minutes.

    tool_threads: the threads of a tool for which a job's share of the cores is no limit: all cores
    of the run, on a cluster those of the job. made: the rule's pattern. The stage, the size of the
    input and the attempt decide.
    """

    def asked(name):
        return lambda wildcards, attempt: made.need(name, wildcards, attempt)

    found = {name: asked(name) for name in ("mem_mb", "runtime", "disk_mb")}
    # Constants where they can be: a function is called again and again for each job of a plan.
    found["gpu_mb"] = asked("gpu_mb") if machine.gpu_rules else 0
    found["tool_threads"] = machine.cores or (lambda wildcards, threads: threads)
    return found


def stale(*columns):
    """The input function of a target: the stale artifacts of columns of `snakemake status`, or all.

    If nothing is stale, it gives a file that is always there: lib/planning/handoff.py, 3.
    """
    return lambda wildcards: session.asked(*columns) or [workflow.snakefile]
