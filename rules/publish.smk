"""The hub: the lock of its models and texts, the check before a build, and publishing.

needs: for publishing, every published form, fresh, with its evaluation and its card
makes: config/sources.lock.yaml; results/MODEL/README.FAMILY.md, the cards of repositories
       (README.FAMILY.FORM.md if each form has its own); repositories on the hub
"""

from lib.run.requests import (
    config_file,
    manifest_file,
    notes_of_uploads,
    references_file,
    repository_cards,
)


localrules:
    lock,
    preflight,
    publish_plan,
    publish,


rule lock:
    """Lock the hub's present commits of all references (--config only=org/name: of that one)."""
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
    """What would make a build fail later: sources, rights, architectures, merges, repositories."""
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
    """What `publish` would add, replace and leave on the hub, and what still prevents that."""
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
    """Upload the files that `publish_plan` lists, and no others."""
    input:
        notes=lambda wildcards: notes_of_uploads(session),
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
