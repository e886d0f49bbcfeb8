"""How the fine-tunes of a merge lie to each other, before they are merged.

needs: the directories of the base and of the models that are merged
makes: results/MODEL/similarity/similarity.{csv,svg,html}
"""

from lib.flags.similarity import similarity_flags

SIMILARITY = pattern("results/{model}/similarity/similarity.csv")
SIMILARITY_PAGE = pattern("results/{model}/similarity/similarity.svg")


localrules:
    similarity_page,


rule similarity:
    """Compare task vectors: cosines, conflicting signs, norms, effective ranks."""
    input:
        recipe=SIMILARITY.wanted,
        base=made_from(SIMILARITY, "base"),
        models=made_from(SIMILARITY, "model"),
    output:
        table=SIMILARITY.path,
        recipe=SIMILARITY.record,
    log:
        SIMILARITY.log,
    benchmark:
        SIMILARITY.benchmark
    conda:
        "../envs/quantmill.yaml"
    threads: SIMILARITY.threads
    resources:
        **needs(SIMILARITY),
    params:
        compared=lambda wildcards, input: similarity_flags(
            SIMILARITY.made(wildcards).options, input.base, input.models
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script similarity.py {params.compared:q} \
            --processes {threads} \
            --notes "$STAGE/notes.json" \
            --output "$OUT"
        commit
        """


rule similarity_page:
    """Draw the heat maps, and write a page that says in words what was found."""
    input:
        recipe=SIMILARITY_PAGE.wanted,
        table=made_from(SIMILARITY_PAGE, "table"),
    output:
        svg=report(
            SIMILARITY_PAGE.path,
            caption="../report/similarity-plot.rst",
            category="Similarity",
            labels={"model": "{model}", "shows": "plot"},
        ),
        html=report(
            "results/{model}/similarity/similarity.html",
            caption="../report/similarity-page.rst",
            category="Similarity",
            labels={"model": "{model}", "shows": "page"},
        ),
        records=expand(
            "results/{{model}}/similarity/similarity.{kind}.recipe.json",
            kind=["svg", "html"],
        ),
    log:
        SIMILARITY_PAGE.log,
    benchmark:
        SIMILARITY_PAGE.benchmark
    conda:
        "../envs/quantmill.yaml"
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script similarity_page.py {input.table:q} \
            --model {wildcards.model:q} \
            --record {input.table:q}.recipe.json \
            --page "$QM_SCRIPTS/templates/similarity.html.j2" \
            --svg "$STAGE/similarity.svg" \
            --html "$STAGE/similarity.html"
        commit
        """
