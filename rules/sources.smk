"""What comes from outside: models and text.

needs: directories, files, or the hub at the commits of config/sources.lock.yaml
makes: resources/models/REFERENCE/, links to the files that steps may read, and to no others
       resources/corpora/NAME.txt or .parquet
"""

from lib.stages.sources import corpus_origin

SOURCE = pattern("resources/models/{source}")
CORPUS = pattern("resources/corpora/{corpus}")


# They take seconds, and downloads need the network of the machine that Snakemake runs on.
localrules:
    source,
    corpus,


rule source:
    """Link to a model's weights, config and tokenizer; to pickles only if the config allows it."""
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
    """Copy a text to a path of its own, because tools write that path into their output."""
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
