"""The hand-off to Snakemake: how it comes to run exactly the steps that the plan takes for stale.

What is stale follows from recipes and records (lib/planning/staleness.py), of which Snakemake knows
nothing. It runs a job when an input file is newer than an output. So each step has one more input
file, its *wanted recipe* (lib/record/wanted.py), which is dated into the far future while the
artifact is stale, and is no input while it is fresh. Here is all that this takes, in the order in
which it happens, with the faults and properties of Snakemake that make it necessary (seen in
9.27.1), how each shows, and how to tell that it is no longer needed. All of it may go once a
workflow can say by itself which jobs are to run: by a rerun trigger that is a function, say.

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

3. Snakemake's main process asks the plan about each artifact that it comes by
   (lib/run/pattern.py). What is fresh has no inputs: nothing is a reason to run it, and what it was
   made from need not be there any more. What is stale has its wanted recipe, and what it is made
   from (`made_from` in rules/common.smk).
   - None of this is marked ancient(). Where all that a job gets from other jobs is ancient and
     there, it is passed over when these run, whatever its other inputs say (update_needrun in
     dag.py). How it shows: the run ends well and leaves the artifact stale, the next one builds it.
     ancient() may be used once a dry run of such a job, with another input newer, lists it.
   - A target asks for what is stale of its own; where nothing is, for one file that is there
     (`stale` in rules/common.smk). Without any input it would be a job that always runs, in place
     of "Nothing to be done". No longer needed once a dry run of `rule all: input: []` says that.

4. The wanted recipe is left as a file (`leave`).
   - Its date is NEWEST, whatever the clocks say of the machines that have made the outputs.
   - Its content is another one each time (`left`). A newer input with the checksum that it had when
     the job ran last is no reason to run it: a damaged file, to be built again by the same recipe,
     would be left as it is, "Nothing to be done", while `why` names it. No longer needed once
     tests/test_contract.py passes with `left` always 0 (a_quant_truncated).
   - There is one for each recipe: a dry run with another config must not change what the steps of
     a run under way obey.
   - Each is in a directory of its own. Snakemake lists the directories of a target's inputs once,
     and takes what comes into them later for missing: "Missing input files for rule", where a file
     is asked for that is built in several steps. No longer needed once the input function of such
     an inner step may write its file beside that of the last one.

5. On a cluster each job is a Snakemake process of its own, which reads the config again. It makes
   no plan, because records have changed since. What it was sent for (`is_sent_for`) it builds by
   the recipe that the main process has left (`path_of`), even where a job of an earlier run has
   just built it and has set the date back: `begin` finds it ready. Where the config was changed
   meanwhile, the recipe that it asks for was not left: "Missing files after … seconds".

6. `begin` (step.sh, step.py) fails where it gets one argument in place of two: Snakemake runs a
   step that nothing is wanted of, as it does without profiles/default, or because the config is
   another one now. Else it holds the artifact. Where it is there as it is wanted, the step is
   done: that of a killed run, for whose end it has waited, has built it. Else the inputs must be
   what the wanted recipe counts on.

7. Once the artifact and its record are there, the file's date is set back (`set_back`): by
   `commit`, or by a `begin` that has found the artifact ready. Snakemake fails a job that has an
   output older than an input ("Output … has older modification time than input"). After a failed
   step the date stays.

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
    """Where the wanted recipe of a stale artifact is left for the step that builds it."""
    return RUN_STATE / "wanted" / artifact.path / artifact.digest[:16] / "recipe.json"


def leave(artifact: "Artifact") -> str:
    """Leave the wanted recipe of a stale artifact, so that Snakemake runs the step; its path."""
    path = path_of(artifact)
    wanted = WantedRecipe(
        artifact.path,
        artifact.outputs,
        artifact.directory,
        artifact.links,
        artifact.rule,
        artifact.digest,
        artifact.recipe,
        {role: (up.path, up.digest) for role, up in artifact.inputs.items()},
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
    """Whether it lies there already, and makes Snakemake run the step: a dry run has left it."""
    try:
        return path.stat().st_mtime == NEWEST and WantedRecipe.read(path) == wanted
    except (OSError, SystemExit):
        return False


def is_sent_for(artifact: "Artifact", wildcards: Any, target_jobs: Iterable[Any]) -> bool:
    """Whether a process that Snakemake has started for jobs of a cluster is to build the artifact.

    target_jobs: Snakemake's own, each with a rule's name and its wildcards.
    """
    return wildcards is not None and any(
        job.rulename.removesuffix("_reclaimed") == artifact.rule
        and job.wildcards_dict == dict(wildcards.items())
        for job in target_jobs
    )


def set_back(wanted_path: str) -> None:
    """Make a wanted recipe older than any output: the artifact is there."""
    os.utime(wanted_path, (0, 0))
