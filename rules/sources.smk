"""What comes from outside: models and text.

needs: directories, files, or the hub at the commits of config/sources.lock.yaml
makes: resources/models/REFERENCE/, links to just the files that a step may read
       resources/corpora/NAME.txt or .parquet
"""

SOURCE = pattern("resources/models/{source}")
CORPUS = pattern("resources/corpora/{corpus}")


rule source:
    """A model's weights, config and tokenizer: no card, no stray file, and no pickle unless the config allows it."""
    input:
        recipe=SOURCE.wanted,
    output:
        model=directory(SOURCE.path),
        recipe=SOURCE.record,
    wildcard_constraints:
        source="[^/]+",
    log:
        SOURCE.log,
    benchmark:
        SOURCE.benchmark
    resources:
        **needs("fetch"),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        {python} {scripts}/source.py --recipe {input.recipe:q} --output "$OUT"
        {python} {scripts}/count_parameters.py "$OUT" > "$STAGE/notes.json"
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
    wildcard_constraints:
        corpus=r"[^/]+\.(txt|parquet)",
    log:
        CORPUS.log,
    benchmark:
        CORPUS.benchmark
    params:
        origin=lambda wildcards: session.corpus_origin(wildcards.corpus),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        {python} {scripts}/corpus.py {params.origin:q} --recipe {input.recipe:q} --output "$OUT"
        commit
        """
