"""The hub: the lock of what comes from it, the check before a build, and publishing.

needs: every form that is published, fresh, with its evaluation and its card
makes: config/sources.lock.yaml, results/MODEL/README.KIND.md (cards of further repositories), and what is on the hub
"""

import shutil
from pathlib import Path

from lib.plan import RUN_STATE
from lib.publishing import manifest
from lib.recipe import write_json
from lib.references import hub_sources

CARD_OF_KIND = pattern("results/{model}/README.{kind}.md")


localrules:
    card_of_kind,
    lock,
    preflight,
    publish_plan,
    publish,


def asked_of(name, value):
    """Leave what a script is asked as a file, and return its path."""
    path = Path(RUN_STATE) / f"{name}.json"
    write_json(path, value)
    return str(path)


def publishing(wildcards):
    """What is to be published: the manifest of scripts/publish.py."""
    made = {name: list(session.graph.of(name).values()) for name in session.graph.names}
    return asked_of("publish", manifest(session.config, made))


def wanted_references(wildcards):
    """Every hub reference of the config."""
    wanted = [vars(want) for want in hub_sources(session.config, session.graph.names)]
    return asked_of("references", wanted)


def checked(wildcards):
    """What preflight is asked. On a cluster it is not known here whether there is a GPU."""
    built = Path("resources/llama.cpp").is_dir()
    cuda = shutil.which("nvidia-smi") is not None if workflow.local_exec else None
    return asked_of(
        "preflight",
        {
            "config": session.config.model_dump(mode="json"),
            "models": session.graph.names,
            "cuda": cuda,
            "converter": "resources/llama.cpp" if built else None,
        },
    )


rule card_of_kind:
    """The model card of a further repository: EXL2 beside GGUF, or the merge's own."""
    input:
        recipe=CARD_OF_KIND.wanted,
        made=made_from(CARD_OF_KIND, "report", "form", "evaluation", "model"),
    output:
        card=CARD_OF_KIND.path,
        recipe=CARD_OF_KIND.record,
    wildcard_constraints:
        kind="gguf|exl2|safetensors",
    log:
        CARD_OF_KIND.log,
    benchmark:
        CARD_OF_KIND.benchmark
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        {python} {scripts}/describe_forms.py {input.recipe:q} > "$STAGE/forms.json"
        {python} {scripts}/describe_card.py {input.recipe:q} > "$STAGE/about.json"
        {python} {scripts}/card.py \
            --forms "$STAGE/forms.json" \
            --about "$STAGE/about.json" \
            --output "$OUT"
        commit
        """


rule lock:
    """Ask the hub what the config's references mean now (--config only=org/name: that one alone)."""
    params:
        wanted=wanted_references,
        only=["--only", ",".join(session.options.only)] if session.options.only else [],
    shell:
        r"""
        {python} {scripts}/hub_lock.py --renew \
            --wanted {params.wanted:q} {params.only:q}
        """


rule preflight:
    """What would make a build fail later, in one table: sources, rights, architectures, merge partners, targets."""
    params:
        request=checked,
    shell:
        r"""
        {python} {scripts}/preflight.py --config-json {params.request:q}
        """


rule publish_plan:
    """What `publish` would add, replace and leave on the hub, and what still stands in its way."""
    params:
        manifest=publishing,
    shell:
        r"""
        {python} {scripts}/publish.py plan --manifest {params.manifest:q}
        """


rule publish:
    """Upload what `publish_plan` lists, and nothing else."""
    params:
        manifest=publishing,
    shell:
        r"""
        {python} {scripts}/publish.py push --manifest {params.manifest:q}
        """
