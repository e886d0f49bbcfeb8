"""What all stages share: the config, the plan, and the frame around each step.

`pattern(path)` stands for the artifacts of a rule. Its members are what the rule's sections need:
`wanted` (the recipe to build by, nothing where the artifact is fresh: lib/planning/handoff.py),
`path`, `record`, `log`, `benchmark`. `made_from(pattern, role)` is the input function for what the
artifact is made from.
"""

import sys
from functools import partial
from shlex import quote

from snakemake.logging import logger
from snakemake.resources import Resource
from snakemake.shell import shell as snakemake_shell

sys.path.insert(0, f"{workflow.basedir}/scripts")

with_conda = "conda" in map(str, workflow.deployment_settings.deployment_method)
if workflow.is_main_process:
    from lib.record import packages

    packages.insist(packages.PLANNING if with_conda else None)

from lib.run.console import is_news
from lib.run.pattern import Pattern
from lib.run.session import Session

# The conda environment's Python where there is one, else the one that runs Snakemake.
python = "python" if with_conda else quote(sys.executable)
if workflow.resource_settings.nodes is not None:
    # Jobs go to a cluster: `cores: all` of profiles/default is about this host, its nodes have others (9.27.1).
    workflow.resource_settings.cores = sys.maxsize
    workflow.global_resources["_cores"] = Resource("_cores", sys.maxsize)

scripts = quote(f"{workflow.basedir}/scripts")
snakemake_shell.prefix(
    # Threads that wait must sleep: spinning, OpenMP's default, makes small steps many times slower on a busy machine.
    f"set -euo pipefail; export OMP_WAIT_POLICY=PASSIVE QM_PYTHON={python} QM_SCRIPTS={scripts}; "
    f". {scripts}/step.sh; . {scripts}/gpus.sh; "
)

logger.addFilter(is_news)

session = Session(config, lambda: workflow.dag_settings, workflow.is_main_process)

pattern = partial(Pattern, session)


wildcard_constraints:
    model="[^/]+",
    quant="[^/]+",
    form="[^/]+",
    bits=r"[\d.]+",


def made_from(made, *roles):
    """The input function for what an artifact is made from: all of it when the artifact is stale, else nothing.

    Nothing is marked ancient(): lib/planning/handoff.py, 3.
    """
    return lambda wildcards: [up.path for up in made.inputs(wildcards, *roles)]


def needs(made):
    """Memory, time and scratch disk of a step, from its stage, the size of its input and the attempt."""

    def asked(name):
        return lambda wildcards, attempt, rulename: made.need(
            name, wildcards, attempt, has_gpu(rulename)
        )

    return {name: asked(name) for name in ("mem_mb", "runtime", "disk_mb")}


def has_gpu(rule):
    """Whether the command line or a profile gives a rule's jobs GPUs: set-resources: {RULE: {gpu: 1}}."""
    given = workflow.resource_settings.overwrite_resources or {}
    return rule in given and given[rule].get("gpu").raw not in (None, 0, "0")


def stale(*columns):
    """The input function of a target: the stale artifacts of columns of `snakemake status`, or all.

    Where nothing is stale it is a file that is just there: lib/planning/handoff.py, 3.
    """
    return lambda wildcards: session.asked(*columns) or [workflow.snakefile]
