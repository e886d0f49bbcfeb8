"""What comes from outside: models and text.

needs: directories, files, or the hub at the commits of config/sources.lock.yaml
makes: resources/models/REFERENCE/, links to just the files that a step may read
       resources/corpora/NAME.txt or .parquet
"""

from lib.stages.sources import corpus_origin

SOURCE = pattern("resources/models/{source}")
CORPUS = pattern("resources/corpora/{corpus}")


# Seconds, and what is downloaded needs the network of the machine that Snakemake runs on.
localrules:
    source,
    corpus,


rule source:
    """A model's weights, config and tokenizer: no card, no stray file, and no pickle unless the config allows it."""
    input:
        recipe=SOURCE.wanted,
    output:
        model=directory(SOURCE.path),
        recipe=SOURCE.record,
    log:
        SOURCE.log,
    benchmark:
        SOURCE.benchmark
    wildcard_constraints:
        source="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(SOURCE),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        fetch source.py --recipe {input.recipe:q} --output "$OUT"
        check count_parameters.py "$OUT" >"$STAGE/notes.json"
        commit
        """


rule corpus:
    """Text for calibration and evaluation, copied under a name of its own: tools write the path into their output."""
    input:
        recipe=CORPUS.wanted,
        text=made_from(CORPUS, "text"),
    output:
        corpus=CORPUS.path,
        recipe=CORPUS.record,
    log:
        CORPUS.log,
    benchmark:
        CORPUS.benchmark
    wildcard_constraints:
        corpus=r"[^/]+\.(txt|parquet)",
    conda:
        "../envs/quantmill.yaml"
    params:
        origin=lambda wildcards: corpus_origin(
            session.config.corpora[wildcards.corpus.rpartition(".")[0]]
        ),
        suffix=CORPUS.option("from"),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        fetch fetch_corpus.py {params.origin:q} --recipe {input.recipe:q} --output "$STAGE/fetched"
        script corpus.py "$STAGE/fetched" --type {params.suffix:q} --output "$OUT"
        check check_corpus.py "$OUT" --corpus {wildcards.corpus:q}
        commit
        """
