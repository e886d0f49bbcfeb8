"""Studies: grids of merges, measured to choose one.

needs: the models that are merged, texts and files of tasks; merge.smk, gguf.smk and evaluate.smk, which make
       and measure candidates as they do models
makes: results/studies/STUDY/candidates/ID/perplexity/ROUND/TEXT.json,
       results/studies/STUDY/study.{csv,svg,html}
"""

from lib.flags.context import context_flags

PERPLEXITY = pattern("results/{model}/perplexity/{round}/{text}.json")
STUDY = pattern("results/studies/{study}/study.csv")


localrules:
    study,


rule perplexity:
    """Measure the perplexity of a GGUF on a text."""
    input:
        recipe=PERPLEXITY.wanted,
        tools=made_from(PERPLEXITY, "llama.cpp"),
        gguf=made_from(PERPLEXITY, "gguf"),
        text=made_from(PERPLEXITY, "corpus"),
    output:
        perplexity=PERPLEXITY.path,
        recipe=PERPLEXITY.record,
    log:
        PERPLEXITY.log,
    benchmark:
        PERPLEXITY.benchmark
    wildcard_constraints:
        round="[0-9]+",
        text="[^/]+",
    priority: PERPLEXITY.priority
    conda:
        "../envs/quantmill.yaml"
    threads: PERPLEXITY.threads
    resources:
        **needs(PERPLEXITY),
        gpu=0,
    params:
        corpus=PERPLEXITY.option("corpus"),
        flags=PERPLEXITY.flags(context_flags),
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        script perplexity.py \
            --text {input.text:q} \
            --corpus {params.corpus:q} \
            --output "$OUT" \
            -- \
            {input.tools:q}/bin/llama-perplexity \
            --model {input.gguf:q} \
            {params.flags:q} \
            --n-gpu-layers {params.gpu_layers} \
            --threads {threads}
        commit
        """


rule study:
    """A table, a plot and a page of all candidates of a study, and which of them wins."""
    input:
        recipe=STUDY.wanted,
        measured=made_from(STUDY, "round"),
    output:
        csv=report(
            STUDY.path,
            caption="../report/study.rst",
            category="Studies",
            labels={"study": "{study}", "shows": "table"},
        ),
        svg=report(
            "results/studies/{study}/study.svg",
            caption="../report/study.rst",
            category="Studies",
            labels={"study": "{study}", "shows": "plot"},
        ),
        html=report(
            "results/studies/{study}/study.html",
            caption="../report/study.rst",
            category="Studies",
            labels={"study": "{study}", "shows": "page"},
        ),
        records=expand(
            "results/studies/{{study}}/study.{kind}.recipe.json",
            kind=["csv", "svg", "html"],
        ),
    log:
        STUDY.log,
    benchmark:
        STUDY.benchmark
    wildcard_constraints:
        study="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script study.py {input.recipe:q} \
            --page "$QM_SCRIPTS/templates/study.html.j2" \
            --page-script "$QM_SCRIPTS/templates/study.js" \
            --csv "$STAGE/study.csv" \
            --svg "$STAGE/study.svg" \
            --html "$STAGE/study.html"
        commit
        """
