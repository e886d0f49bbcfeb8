"""The report and the model card.

needs: every form and every evaluation of a model; for cards its shards too
makes: results/MODEL/report/quality.{csv,svg,html}, results/MODEL/README.md
"""

REPORT = pattern("results/{model}/report/quality.csv")
CARD = pattern("results/{model}/{card}.md")


localrules:
    report,
    card,


rule report:
    """A table, a plot and a page of all forms: size, KL divergence, perplexity, agreement."""
    input:
        recipe=REPORT.wanted,
        made=made_from(
            REPORT,
            *("form", "evaluation", "also", "task"),
            *("harness", "mix", "model", "beside"),
        ),
    output:
        csv=report(
            REPORT.path,
            caption="../report/quality-table.rst",
            category="Quality",
            labels={"model": "{model}", "shows": "table"},
        ),
        svg=report(
            "results/{model}/report/quality.svg",
            caption="../report/quality-plot.rst",
            category="Quality",
            labels={"model": "{model}", "shows": "plot"},
        ),
        html=report(
            "results/{model}/report/quality.html",
            caption="../report/quality-page.rst",
            category="Quality",
            labels={"model": "{model}", "shows": "page"},
        ),
        records=expand(
            "results/{{model}}/report/quality.{kind}.recipe.json",
            kind=["csv", "svg", "html"],
        ),
    log:
        REPORT.log,
    benchmark:
        REPORT.benchmark
    conda:
        "../envs/quantmill.yaml"
    # What is printed for a program is made while the program starts. Who fails prints nothing, which
    # the program cannot read.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script report.py \
            --model {wildcards.model:q} \
            --forms <(script describe_forms.py {input.recipe:q}) \
            --families .snakemake/quantmill/families.json \
            --page "$QM_SCRIPTS/templates/quality.html.j2" \
            --page-script "$QM_SCRIPTS/templates/quality.js" \
            --csv "$STAGE/quality.csv" \
            --svg "$STAGE/quality.svg" \
            --html "$STAGE/quality.html"
        commit
        """


rule card:
    """A model card: what the model is, which file to take, how it was made."""
    input:
        recipe=CARD.wanted,
        made=made_from(
            CARD,
            *("form", "evaluation", "also", "task", "harness"),
            *("mix", "model", "shards", "beside"),
        ),
    output:
        card=CARD.path,
        recipe=CARD.record,
    log:
        CARD.log,
    benchmark:
        CARD.benchmark
    wildcard_constraints:
        card=r"README(\.\w+(\.[^/]+)?)?",
    conda:
        "../envs/quantmill.yaml"
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script card.py \
            --forms <(script describe_forms.py {input.recipe:q}) \
            --families .snakemake/quantmill/families.json \
            --about <(script describe_card.py {input.recipe:q}) \
            --template "$QM_SCRIPTS/templates/card.md.j2" \
            --output "$OUT"
        commit
        """
