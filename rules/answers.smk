"""Questions before and after a run; nothing is built. See docs/staleness.md.

needs: the config; what lies under results/
makes: nothing; `clean_orphans` deletes what it has shown, `verify_rebuild` builds in a directory of its own
"""


localrules:
    why,
    plan,
    status,
    verify,
    verify_rebuild,
    orphans,
    clean_orphans,


def left_config(wildcards):
    """The config with the options of the command line, as a file."""
    return session.leave_config()


rule why:
    """Why what is stale is stale (--config target=FILE_OR_RULE,…: of these alone, also where they are fresh)."""
    params:
        config=left_config,
    shell:
        "{python} {scripts}/why.py --config {params.config:q}"


rule plan:
    """What a build will make: files, sizes, times, and whether the disk is large enough."""
    params:
        config=left_config,
        cores=workflow.cores or 1,
    shell:
        "{python} {scripts}/plan.py --config {params.config:q} --cores {params.cores}"


rule status:
    """How much of each model is there, and what is being built now."""
    params:
        config=left_config,
    shell:
        "{python} {scripts}/status.py --config {params.config:q}"


rule verify:
    """Hash everything again: truncated, edited, swapped, missing and unrecorded files."""
    params:
        config=left_config,
    shell:
        "{python} {scripts}/verify.py --config {params.config:q}"


rule verify_rebuild:
    """Build a model again (--config model=NAME) in a directory of its own and compare the bytes."""
    params:
        config=left_config,
        cores=workflow.cores or 1,
        snakefile=f"{workflow.basedir}/Snakefile",
    shell:
        r"""
        {python} {scripts}/verify_rebuild.py \
            --config {params.config:q} \
            --snakefile {params.snakefile:q} \
            --cores {params.cores}
        """


rule orphans:
    """What Quantmill has made that the config no longer declares."""
    params:
        config=left_config,
    shell:
        "{python} {scripts}/orphans.py --config {params.config:q}"


rule clean_orphans:
    """Show what `orphans` shows; with --config yes=true delete it."""
    params:
        config=left_config,
    shell:
        "{python} {scripts}/orphans.py --config {params.config:q} --delete"
