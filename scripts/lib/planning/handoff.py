"""The hand-off to Snakemake: make it run exactly the steps whose artifacts are stale.

Recipes and records decide what is stale (lib/planning/staleness.py); Snakemake does not know them.
It runs a job when an input file is newer than an output. So each step has one more input file, its
*wanted recipe* (lib/record/wanted.py). While the artifact is stale, this file has a date in the far
future; while the artifact is fresh, the step does not have this input. The list below has all that
this takes, in the order in which it happens: the property or fault of Snakemake that makes it
necessary (seen in 9.27.1), how that shows, and how to tell that it is no longer needed. All of it
may go once a workflow itself can say which jobs are to run, by a rerun trigger that is a function,
say.

1. profiles/default has Snakemake judge by dates alone.
   - `rerun-triggers: [mtime]`: other triggers compare a job with the metadata of its last run. A
     fresh artifact would be built again, "Set of input files has changed since last execution",
     because it has no inputs now.
   - `ignore-incomplete`: it remembers what a killed run was at, and refuses to go on. Here the
     record, which is written last, proves that an artifact is complete.
   - `nolock`: its lock outlives a killed run ("Directory cannot be locked"). What lib/run/hold.py
     does instead ends with the process.

2. Before the plan is made, links to the user's own files that lead nowhere are removed
   (`remove_dangling_links`). Snakemake takes each name in a directory for a file that is there, and
   ends with "Unable to obtain modification time of file … although it existed before". No longer
   needed once tests/test_own_files.py's test of such a link passes without it.

3. Snakemake's main process asks the plan about each artifact that it meets (lib/run/pattern.py). A
   fresh artifact has no inputs: nothing makes its step run, and the files that it was made from may
   be gone. A stale artifact has two kinds of inputs: its wanted recipe, and the artifacts that it
   is made from (`made_from` in rules/common.smk).
   - None of these is marked ancient(). If all inputs that a job gets from other jobs are ancient
     and there, Snakemake skips the job when these jobs run, even if another input is newer
     (update_needrun in dag.py). How it shows: the run ends well and leaves the artifact stale, the
     next one builds it. ancient() may be used once a dry run of such a job, with another input
     newer, lists it.
   - A target asks for its stale artifacts; if there are none, for one file that is there (`stale`
     in rules/common.smk). Without any input it would be a job that always runs, in place of
     "Nothing to be done". No longer needed once a dry run of `rule all: input: []` says that.

4. The wanted recipe is left as a file (`leave`).
   - Its date is NEWEST, so the clocks of the machines that made the outputs do not matter.
   - Its content differs each time (`left`). Snakemake does not run a job for a newer input that has
     the same checksum as at the job's last run. A damaged file, to be built again by the same
     recipe, would stay damaged: "Nothing to be done", while `why` names it. No longer needed once
     tests/test_contract.py passes with `left` always 0 (a_quant_truncated).
   - Each recipe has a file of its own: a dry run with another config must not change the recipes of
     a run that is under way.
   - Each file is in a directory of its own. Snakemake lists the directories of a target's inputs
     once, and takes a file that is written there later for missing: "Missing input files for rule",
     for a target that is built in several steps. No longer needed once the input function of such
     an inner step may write its file beside that of the last one.

5. On a cluster each job is a Snakemake process of its own, which reads the config again. It makes
   no plan, because records have changed since. It builds the artifact that it was sent for
   (`is_sent_for`) by the recipe that the main process has left (`path_of`). If a job of an earlier
   run has just built the artifact and has set the date back, `begin` finds it ready. If the config
   was changed meanwhile, the job asks for a recipe that was not left: "Missing files after …
   seconds".

6. `begin` (step.sh, step.py) fails if it gets one argument in place of two: then Snakemake runs a
   step for which there is no wanted recipe. It does so without profiles/default, or if the config
   has changed. Else `begin` holds the artifact, after a step of a killed run that still holds it
   has ended. If the artifact is now there as it is wanted, the step is done. If not, `begin` checks
   that the inputs are those that the wanted recipe names.

7. Once the artifact and its record are there, the wanted recipe's date is set back (`set_back`): by
   `commit`, or by a `begin` that has found the artifact ready. Snakemake fails a job that has an
   output older than an input ("Output … has older modification time than input"). After a failed
   step the date stays in the future.

8. The next run's plan finds the artifact fresh by its record. It has no inputs, so it is not run.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.record.layout import RUN_STATE
from lib.record.wanted import WantedRecipe

if TYPE_CHECKING:  # every step imports this module, and pays for what it imports
    from lib.record.artifact import Artifact

NEWEST = 4_000_000_000  # seconds, in the year 2096: newer than any output


def remove_dangling_links(artifacts: Iterable["Artifact"]) -> None:
    """Remove links that lead nowhere, before Snakemake asks for their dates."""
    for artifact in artifacts:
        path = artifact.path
        if artifact.links and os.path.islink(path) and not os.path.exists(path):
            os.unlink(path)


def path_of(artifact: "Artifact") -> Path:
    """The path of a stale artifact's wanted recipe, which the step that builds it reads.

    step.sh takes the artifact's path from it.
    """
    return RUN_STATE / "wanted" / artifact.path / artifact.digest[:16] / "recipe.json"


def leave(artifact: "Artifact") -> str:
    """Write a stale artifact's wanted recipe, so that Snakemake runs the step. Returns its path."""
    path = path_of(artifact)
    wanted = WantedRecipe(
        artifact.path,
        artifact.outputs,
        artifact.directory,
        artifact.links,
        artifact.rule,
        artifact.digest,
        artifact.recipe,
        {role: (up.path, up.digest) for role, up in artifact.read.items()},
        left=time.time_ns(),
    )
    if not _is_left(path, wanted):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(wanted.to_json(), encoding="utf-8")
        os.utime(part, (NEWEST, NEWEST))
        os.replace(part, path)
    return str(path)


def _is_left(path: Path, wanted: WantedRecipe) -> bool:
    """Whether a dry run has left the same recipe already, dated so that Snakemake runs the step."""
    try:
        return path.stat().st_mtime == NEWEST and WantedRecipe.read(path) == wanted
    except (OSError, SystemExit):
        return False


def is_sent_for(artifact: "Artifact", wildcards: Any, target_jobs: Iterable[Any]) -> bool:
    """Whether this process, which Snakemake started for a job of a cluster, builds the artifact.

    wildcards: the rule's, None if they are not known. target_jobs: the jobs of this process as
    Snakemake's settings have them, each with a rule's name and its wildcards.
    """
    return wildcards is not None and any(
        job.rulename.removesuffix("_reclaimed") == artifact.rule
        and job.wildcards_dict == dict(wildcards.items())
        for job in target_jobs
    )


def set_back(wanted_path: str) -> None:
    """Date a wanted recipe to 1970, older than any output: its artifact has been built."""
    os.utime(wanted_path, (0, 0))
