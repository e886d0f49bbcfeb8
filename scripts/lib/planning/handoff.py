"""The hand-off to Snakemake: make it run exactly the steps whose artifacts are stale.

Recipes and records decide what is stale (lib/planning/staleness.py); Snakemake does not know them.
It runs a job when an input file is newer than an output. So each step has one more input file, its
*wanted recipe* (lib/record/wanted.py). While the artifact is stale, this file is dated newer than
it; while the artifact is fresh, the step does not have this input. The list below has all that this
takes, in the order in which it happens: the property or fault of Snakemake that makes it
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
   - Its date is a second after what lies there of the artifact, and 1970 if that is nothing. So the
     clocks of the machines that made it do not matter, and what the step makes is newer.
   - It is NEWEST where a step of a killed run is still at work: what that step makes must not be
     taken for what is wanted. No other recipe has a date in the future, because network file
     systems remember dates for a minute (see 7), and the machine that steps work on may be another.
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
   output older than an input ("Output … has older modification time than input"), and deletes the
   output. So it does where an artifact was made while a clock was ahead: its date is brought back
   by the plan that builds it again, or something of it (`bring_back`).

8. The next run's plan finds the artifact fresh by its record. It has no inputs, so it is not run.

9. Where there is a store (docs/store.md), an offer lies beside the wanted recipe
   (lib/store/offer.py). An artifact that will be taken has no inputs but its wanted recipe, unless
   all of them are fresh: so nothing is built for it. If `begin` takes it, the step is done; if it
   has to refuse the store's entry, the step builds, or fails where Snakemake has not given it its
   inputs.
   - What is linked to the store is write-protected. Snakemake refuses jobs whose old output is so
     ("Write-protected output files"); to let it be written to would let the store's bytes be, which
     are the same file. rules/common.smk takes that check out. No longer needed once a dry run of
     such a job lists it.

10. What a run deletes because another place has it (lib/planning/cooling.py) is no input of those
    who only tell of it: they wait for its note, or for nothing where it is cold already. No target
    asks for the file either. Else Snakemake would miss it, or make it again.
"""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import UserError
from lib.record.bound import Bound
from lib.record.layout import RUN_STATE, SNAKEMAKE_MARK, building_directory, hold_file
from lib.record.locks import is_held
from lib.record.wanted import WantedRecipe

if TYPE_CHECKING:  # every step imports this module, and pays for what it imports
    from lib.record.artifact import Artifact
    from lib.store.offer import Offer

OFFER = "store.json"
SEEN = "seen.json"  # the files from outside that a step reads, as the plan has seen them
UPLOAD = "upload.json"  # beside it: what the step uploads, or where on the hub it was seen before
FETCH = "fetch.json"  # beside it: where on the hub the step finds it, and its record
BOUND = "bound"  # the file beside a wanted recipe that says what the bytes are bound to
# Dates of wanted recipes, in seconds. NEWEST is in the year 2096.
BUILT, NEWEST = 0, 4_000_000_000


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


def leave(artifact: "Artifact", offer: "Offer | None" = None) -> str:
    """Write a stale artifact's wanted recipe, so that Snakemake runs the step. Returns its path.

    offer: what the step may do with the store.
    """
    path = path_of(artifact)
    leave_offer(path, offer)
    for output in artifact.outputs:
        bring_back(output)
    for up in (*artifact.inputs.values(), *artifact.uses.values()):
        bring_back(up.path)
    due = _due(artifact)
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
    if not _is_left(path, due, wanted, artifact.bound):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(BOUND).write_text(artifact.bound.value)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(wanted.to_json(), encoding="utf-8")
        os.utime(part, (due, due))
        os.replace(part, path)
    return str(path)


def _due(artifact: "Artifact") -> int:
    """The date of a stale artifact's wanted recipe: see 4."""
    if is_held(hold_file(building_directory(artifact.path))):
        return NEWEST
    dates = [date for output in artifact.outputs if (date := dated(output)) is not None]
    return int(max(dates, default=BUILT)) + 1


def dated(output: str) -> float | None:
    """The date by which Snakemake judges an output; None if it is not there."""
    try:
        return carrier(output).lstat().st_mtime
    except OSError:
        return None


def carrier(output: str) -> Path:
    """The file whose date counts as that of an output."""
    path = Path(output)
    marked = path.is_dir() and not path.is_symlink() and (path / SNAKEMAKE_MARK).exists()
    return path / SNAKEMAKE_MARK if marked else path


def bring_back(output: str) -> None:
    """Date an output to now whose date lies in the future."""
    if (dated(output) or 0) > time.time():
        with suppress(PermissionError):  # of another user
            os.utime(carrier(output), follow_symlinks=False)


def offer(wanted_path: str | Path) -> "Offer | None":
    """What the step of a wanted recipe may do with the store; None: there is no store."""
    if not os.path.exists(Path(wanted_path).with_name(OFFER)):
        return None
    from lib.store.offer import Offer

    return Offer.read(Path(wanted_path).with_name(OFFER))


def leave_offer(wanted_path: Path, offer: "Offer | None") -> None:
    """Write the offer beside a wanted recipe; None: remove what an earlier run has left there."""
    if offer:
        offer.write(wanted_path.with_name(OFFER))
    else:
        wanted_path.with_name(OFFER).unlink(missing_ok=True)


def leave_beside(wanted_path: str | Path, name: str, data: dict | None) -> None:
    """Write a JSON file beside a wanted recipe; None: remove what an earlier run has left there."""
    file = Path(wanted_path).with_name(name)
    if data is None:
        file.unlink(missing_ok=True)
        return
    part = file.with_name(f"{name}.{os.getpid()}")
    part.write_text(json.dumps(data), encoding="utf-8")
    os.replace(part, file)


def beside(wanted_path: str | Path, name: str) -> dict | None:
    """What `leave_beside` has left; None if that is nothing."""
    try:
        return json.loads(Path(wanted_path).with_name(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _is_left(path: Path, due: int, wanted: WantedRecipe, bound: Bound) -> bool:
    """Whether a dry run has left the same recipe already, dated so that Snakemake runs the step."""
    try:
        if path.stat().st_mtime != due or path.with_name(BOUND).read_text() != bound.value:
            return False
        return WantedRecipe.read(path) == wanted
    except (OSError, UserError):  # empty, say, after a crash of the machine
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


def is_bound_to_machine(wanted_path: str) -> bool:
    """Whether the artifact of a wanted recipe is bound to the kind of machine that builds it.

    That is in a file of its own, because programs whose code decides bytes read wanted recipes.
    """
    try:
        return Path(wanted_path).with_name(BOUND).read_text() == Bound.MACHINE.value
    except OSError:
        return False


def set_back(wanted_path: str) -> None:
    """Date a wanted recipe to 1970, older than any output: its artifact has been built."""
    os.utime(wanted_path, (BUILT, BUILT))


def is_set_back(wanted_path: str) -> bool:
    """Whether the step of a wanted recipe has ended well."""
    try:
        return os.stat(wanted_path).st_mtime == BUILT
    except OSError:
        return False
