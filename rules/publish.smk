"""The hub: the lock of what comes from it, the check before a build, and publishing.

needs: every form that is published, fresh, with its evaluation and its card
makes: config/sources.lock.yaml, results/MODEL/README.FAMILY.md (cards of repositories; README.FAMILY.FORM.md
       where each form has its own), and what is on the hub
"""

from lib.run.requests import (
    config_file,
    manifest_file,
    references_file,
    repository_cards,
)


localrules:
    lock,
    preflight,
    publish_plan,
    publish,


rule lock:
    """Ask the hub what the config's references mean now (--config only=org/name: that one alone)."""
    log:
        "logs/lock.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        sources=lambda wildcards: references_file(session),
        only=["--only", ",".join(session.options.only)] if session.options.only else [],
    shell:
        r"""
        script hub_lock.py --renew \
            --sources {params.sources:q} {params.only:q} | tee {log:q}
        """


rule preflight:
    """What would make a build fail later, in one table: sources, rights, architectures, merge partners, targets."""
    log:
        "logs/preflight.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        config=lambda wildcards: config_file(session),
        cluster=lambda wildcards: [] if workflow.local_exec else ["--cluster"],
    shell:
        r"""
        script ask_preflight.py --config {params.config:q} {params.cluster:q} | tee {log:q}
        """


rule publish_plan:
    """What `publish` would add, replace and leave on the hub, and what still stands in its way."""
    input:
        cards=lambda wildcards: repository_cards(session),
    log:
        "logs/publish_plan.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        manifest=lambda wildcards: manifest_file(session),
    shell:
        r"""
        script publish.py plan --manifest {params.manifest:q} | tee {log:q}
        """


rule publish:
    """Upload what `publish_plan` lists, and nothing else."""
    input:
        cards=lambda wildcards: repository_cards(session),
    log:
        "logs/publish.log",
    conda:
        "../envs/quantmill.yaml"
    params:
        manifest=lambda wildcards: manifest_file(session),
    shell:
        r"""
        script publish.py push --manifest {params.manifest:q} | tee {log:q}
        """
