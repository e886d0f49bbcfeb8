"""Questions before and after a run; nothing is built. See docs/staleness.md.

needs: the config, and the files under results/
makes: nothing; but `accept` writes into records, `clean_orphans` deletes what it has shown,
       `verify_rebuild` builds in a directory of its own, `gallery` writes results/index.html, and
       `speed` results/MODEL/speed/, which no recipe reads
"""

from lib.run.requests import config_file


localrules:
    accept,
    why,
    plan,
    status,
    gallery,
    live,
    verify,
    verify_rebuild,
    audit,
    orphans,
    clean_orphans,
    choose,
    speed,
    store,


rule why:
    """Why artifacts are stale: all, or the chosen ones (--config target=FILE_OR_RULE,…)."""
    log:
        "logs/why.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_why.py --config {params.config:q} | tee {log:q}"


rule plan:
    """What a build will make: files, sizes and times, and whether the disk is large enough."""
    log:
        "logs/plan.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
        machine=machine.to_json(),
    shell:
        r"""
        script ask_plan.py --config {params.config:q} \
            --machine {params.machine:q} | tee {log:q}
        """


rule status:
    """How many artifacts of each model are there, and which are being built now."""
    log:
        "logs/status.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_status.py --config {params.config:q} | tee {log:q}"


rule gallery:
    """Write results/index.html, a page of all models; a build does so itself when it ends."""
    log:
        "logs/gallery.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script gallery.py --config {params.config:q} | tee {log:q}"


rule live:
    """While a build runs, in another terminal: what runs, what waits, how long, and the disk."""
    log:
        "logs/live.log",
    conda:
        "../envs/quantmill.yaml"
    shell:
        # Its output is a terminal's, so that it can draw on it.
        "script ask_live.py 2> >(tee {log:q} >&2)"


rule verify:
    """Hash all files again, to find truncated, edited, swapped, missing and unrecorded ones."""
    log:
        "logs/verify.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_verify.py --config {params.config:q} | tee {log:q}"


rule verify_rebuild:
    """Build a model again (--config model=NAME) in a directory of its own and compare the bytes."""
    log:
        "logs/verify_rebuild.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
        cores=workflow.cores or 1,
        snakefile=f"{workflow.basedir}/Snakefile",
    shell:
        r"""
        script ask_verify_rebuild.py \
            --config {params.config:q} \
            --snakefile {params.snakefile:q} \
            --cores {params.cores} | tee {log:q}
        """


rule audit:
    """Check what is published (--config repo=org/name or dir=PATH, key=FILE), as a stranger would."""
    log:
        "logs/audit.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
        cores=workflow.cores or 1,
        snakefile=f"{workflow.basedir}/Snakefile",
    shell:
        r"""
        script ask_audit.py \
            --config {params.config:q} \
            --snakefile {params.snakefile:q} \
            --cores {params.cores} | tee {log:q}
        """


rule accept:
    """Accept artifacts that differ in code or tools alone (--config target=FILE/RULE/MODEL/all)."""
    log:
        "logs/accept.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
        cores=workflow.cores or 1,
        snakefile=f"{workflow.basedir}/Snakefile",
    shell:
        r"""
        script accept.py \
            --config {params.config:q} \
            --snakefile {params.snakefile:q} \
            --cores {params.cores} | tee {log:q}
        """


rule orphans:
    """Files that Quantmill has made and that the config no longer declares."""
    log:
        "logs/orphans.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_orphans.py --config {params.config:q} | tee {log:q}"


rule clean_orphans:
    """Show the files that `orphans` shows; with --config yes=true delete them."""
    log:
        "logs/clean_orphans.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_orphans.py --config {params.config:q} --delete | tee {log:q}"


rule store:
    """What the store has; check=true, put=true; keep=30d, size=500G, unasked=true prune it."""
    log:
        "logs/store.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script ask_store.py --config {params.config:q} | tee {log:q}"


rule choose:
    """Choose a candidate of each study (--config model=STUDY: only that) into config/studies.lock.yaml."""
    log:
        "logs/choose.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
    shell:
        "script choose.py --config {params.config:q} | tee {log:q}"


rule speed:
    """Measure how fast this machine runs each form (--config target=MODEL,FORM: only these)."""
    log:
        "logs/speed.log",
    conda:
        "../envs/quantmill.yaml"
    threads: machine.cores or 1
    params:
        config=lambda wildcards: config_file(session),
        cluster=lambda wildcards: [] if workflow.local_exec else ["--cluster"],
        again=lambda wildcards: ["--again"] if session.forces("speed") else [],
    shell:
        r"""
        gpus all
        script speed.py --config {params.config:q} \
            --cores {threads} {params.cluster:q} {params.again:q} | tee {log:q}
        """
