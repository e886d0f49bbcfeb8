"""The embedded default's own models: tiny, but real and trained.

needs: Python's standard library as text
makes: resources/demo/text/, resources/demo/{base,code,prose}/
"""

DEMO_TEXT = pattern("resources/demo/text")
DEMO_BASE = pattern("resources/demo/base")
DEMO_FINETUNE = pattern("resources/demo/{domain}")


rule demo_text:
    """Text that every machine has, for training, calibration and evaluation."""
    input:
        recipe=DEMO_TEXT.wanted,
    output:
        text=directory(DEMO_TEXT.path),
        recipe=DEMO_TEXT.record,
    log:
        DEMO_TEXT.log,
    benchmark:
        DEMO_TEXT.benchmark
    conda:
        "../envs/quantmill.yaml"
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script demo_text.py --output "$OUT"
        commit
        """


rule demo_base:
    """Train a Llama of 4 million parameters on code and prose: minutes on two cores."""
    input:
        recipe=DEMO_BASE.wanted,
        text=made_from(DEMO_BASE, "text"),
    output:
        model=directory(DEMO_BASE.path),
        recipe=DEMO_BASE.record,
    log:
        DEMO_BASE.log,
    benchmark:
        DEMO_BASE.benchmark
    conda:
        "../envs/quantmill.yaml"
    threads: DEMO_BASE.threads
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script demo_train.py base --text {input.text:q} --output "$OUT"
        commit
        """


rule demo_finetune:
    """Train the base further on one domain only, so that there are models to merge."""
    input:
        recipe=DEMO_FINETUNE.wanted,
        base=made_from(DEMO_FINETUNE, "base"),
        text=made_from(DEMO_FINETUNE, "text"),
    output:
        model=directory(DEMO_FINETUNE.path),
        recipe=DEMO_FINETUNE.record,
    log:
        DEMO_FINETUNE.log,
    benchmark:
        DEMO_FINETUNE.benchmark
    wildcard_constraints:
        domain="code|prose",
    conda:
        "../envs/quantmill.yaml"
    threads: DEMO_FINETUNE.threads
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script demo_train.py finetune \
            --base {input.base:q} \
            --text {input.text:q} \
            --domain {wildcards.domain:q} \
            --output "$OUT"
        commit
        """
