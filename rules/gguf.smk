"""The unquantized GGUF: a conversion, or a link to the user's file.

needs: a model directory, or a GGUF file
makes: results/MODEL/gguf/MODEL-OUTTYPE.gguf
"""

from lib.run.wildcards import conversions, reclaimed, stem

CONVERSION = pattern("results/{model}/gguf/{conversion}.gguf")


rule convert:
    """Convert to GGUF; check that it is of this source, loads, writes words, and has no NaN."""
    input:
        recipe=CONVERSION.wanted,
        tools=made_from(CONVERSION, "llama.cpp"),
        model=made_from(CONVERSION, "model"),
        after=made_from(CONVERSION, "after"),
    output:
        gguf=CONVERSION.path,
        recipe=CONVERSION.record,
    log:
        CONVERSION.log,
    benchmark:
        CONVERSION.benchmark
    wildcard_constraints:
        conversion=conversions(session.graph, own=False),
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(CONVERSION),
    params:
        outtype=CONVERSION.option("outtype"),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        script convert.py --threads {resources.tool_threads} \
            {input.tools:q}/convert_hf_to_gguf.py {input.model:q} \
            --outtype {params.outtype:q} \
            --model-name {wildcards.model:q} \
            --outfile "$OUT"
        check check_gguf.py "$OUT" \
            --source {input.model:q} \
            --completion-tool {input.tools:q}/bin/llama-completion \
            --threads {resources.tool_threads} \
            --json "$STAGE/notes.json"
        commit
        """


use rule convert as convert_reclaimed with:
    output:
        gguf=temp(CONVERSION.path),
        recipe=CONVERSION.record,
    wildcard_constraints:
        conversion=reclaimed(session.graph, "convert", stem),


ruleorder: convert_reclaimed > convert


rule source_gguf:
    """Link to a GGUF file; check that it loads and writes words, and has no NaN or infinity."""
    input:
        recipe=CONVERSION.wanted,
        tools=made_from(CONVERSION, "llama.cpp"),
    output:
        gguf=CONVERSION.path,
        recipe=CONVERSION.record,
    log:
        CONVERSION.log,
    benchmark:
        CONVERSION.benchmark
    wildcard_constraints:
        conversion=conversions(session.graph, own=True),
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(CONVERSION),
    params:
        file=lambda wildcards: CONVERSION.made(wildcards).file,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        fetch link_file.py {params.file:q} "$OUT"
        check check_gguf.py "$OUT" \
            --completion-tool {input.tools:q}/bin/llama-completion \
            --threads {resources.tool_threads} \
            --json "$STAGE/notes.json"
        commit
        """
