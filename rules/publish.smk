"""The hub: the lock of what comes from it, the check before a build, and publishing.

needs: every form that is published, fresh, with its evaluation and its card
makes: config/sources.lock.yaml, results/MODEL/README.KIND.md (cards of further repositories), and what is on the hub
"""

from pathlib import Path

from lib.plan import RUN_STATE
from lib.publishing import manifest
from lib.recipe import write_json
from lib.references import hub_sources


localrules:
    lock,
    preflight,
    publish_plan,
    publish,


def asked_of(name, value):
    """Leave what a script is asked as a file, and return its path."""
    path = Path(RUN_STATE) / f"{name}.json"
    write_json(path, value)
    return str(path)


def repository_cards(wildcards):
    """The stale cards of the repositories: they alone depend on how a model is published."""
    made = (card for card in session.graph if card.on_demand)
    return [card.path for card in made if session.is_stale(card)]


def publishing(wildcards):
    """What is to be published: the manifest of scripts/publish.py."""
    made = {name: list(session.graph.of(name).values()) for name in session.graph.names}
    return asked_of("publish", manifest(session.config, made))


def wanted_references(wildcards):
    """Every hub reference of the config."""
    wanted = [vars(want) for want in hub_sources(session.config, session.graph.names)]
    return asked_of("references", wanted)


def checked(wildcards):
    """What preflight is asked: everything, publishing included."""
    return session.preflight_request(workflow.local_exec, session.graph.names)


rule lock:
    """Ask the hub what the config's references mean now (--config only=org/name: that one alone)."""
    conda:
        "../envs/quantmill.yaml"
    params:
        wanted=wanted_references,
        only=["--only", ",".join(session.options.only)] if session.options.only else [],
    shell:
        r"""
        script hub_lock.py --renew \
            --wanted {params.wanted:q} {params.only:q}
        """


rule preflight:
    """What would make a build fail later, in one table: sources, rights, architectures, merge partners, targets."""
    conda:
        "../envs/quantmill.yaml"
    params:
        request=checked,
    shell:
        r"""
        script preflight.py --config-json {params.request:q}
        """


rule publish_plan:
    """What `publish` would add, replace and leave on the hub, and what still stands in its way."""
    input:
        cards=repository_cards,
    conda:
        "../envs/quantmill.yaml"
    params:
        manifest=publishing,
    shell:
        r"""
        script publish.py plan --manifest {params.manifest:q}
        """


rule publish:
    """Upload what `publish_plan` lists, and nothing else."""
    input:
        cards=repository_cards,
    conda:
        "../envs/quantmill.yaml"
    params:
        manifest=publishing,
    shell:
        r"""
        script publish.py push --manifest {params.manifest:q}
        """
