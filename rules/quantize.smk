"""Quants and their shards; and notes of those that are deleted here, because another place has them.

needs: the unquantized GGUF; the imatrix, for quants that use it
makes: results/MODEL/gguf/MODEL-NAME.gguf, results/MODEL/shards/NAME/
       results/MODEL/labelled/MODEL-NAME.gguf, if the config sets header fields (gguf.metadata)
       ….cold.json beside each, with `reclaim: [quants]` (docs/cold.md)
"""

import json

from lib.flags.quantize import quantize_flags

QUANT = pattern("results/{model}/gguf/{model}-{quant}.gguf")
LABELLED = pattern("results/{model}/labelled/{gguf}.gguf")
SHARDS = pattern("results/{model}/shards/{quant}")
COLD = pattern("results/{model}/{finished}.cold.json")


ruleorder: convert_reclaimed > convert > quantize
ruleorder: source_gguf > quantize


rule quantize:
    """Quantize the unquantized GGUF to one type, with the overrides that the config gives."""
    input:
        recipe=QUANT.wanted,
        after=QUANT.after,
        tools=made_from(QUANT, "llama.cpp"),
        gguf=made_from(QUANT, "gguf"),
        imatrix=made_from(QUANT, "imatrix"),
    output:
        gguf=QUANT.path,
        recipe=QUANT.record,
    log:
        QUANT.log,
    benchmark:
        QUANT.benchmark
    conda:
        "../envs/quantmill.yaml"
    threads: QUANT.threads
    resources:
        **needs(QUANT),
    params:
        flags=QUANT.flags(quantize_flags),
        imatrix=lambda wildcards, input: [
            word for path in input.imatrix for word in ("--imatrix", path)
        ],
        type=QUANT.option("type"),
        pruned=lambda wildcards: QUANT.made(wildcards).options.get("prune_layers", []),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        {input.tools:q}/bin/llama-quantize \
            {params.imatrix:q} \
            {params.flags:q} \
            {input.gguf:q} "$OUT" {params.type:q} {resources.tool_threads}
        check check_quant.py "$OUT" --of {input.gguf:q} --pruned {params.pruned}
        commit
        """


rule label:
    """Set header fields in a finished GGUF, with gguf's own tools: the tensors stay as they are."""
    input:
        recipe=LABELLED.wanted,
        gguf=made_from(LABELLED, "gguf"),
    output:
        gguf=LABELLED.path,
        recipe=LABELLED.record,
    log:
        LABELLED.log,
    benchmark:
        LABELLED.benchmark
    wildcard_constraints:
        gguf="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(LABELLED),
    params:
        fields=lambda wildcards: json.dumps(
            LABELLED.made(wildcards).options["metadata"]
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script gguf_metadata.py {input.gguf:q} "$OUT" --json {params.fields:q}
        commit
        """


rule split:
    """Cut a GGUF into shards and compare their bytes with it; one that needs no cut is linked."""
    input:
        recipe=SHARDS.wanted,
        tools=made_from(SHARDS, "llama.cpp"),
        gguf=made_from(SHARDS, "gguf"),
    output:
        shards=directory(SHARDS.path),
        recipe=SHARDS.record,
    log:
        SHARDS.log,
    benchmark:
        SHARDS.benchmark
    wildcard_constraints:
        quant=r"(?!.*\.cold\.json)[^/]+",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(SHARDS),
    params:
        max_size=SHARDS.option("split_max_size"),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        mkdir "$OUT"
        name={wildcards.model:q}-{wildcards.quant:q}
        split=({input.tools:q}/bin/llama-gguf-split --split --split-max-size {params.max_size:q})
        if "${{split[@]}}" --dry-run {input.gguf:q} "$OUT/$name" | grep -x "n_split: 1"; then
            # One shard would be a second copy of the whole file.
            fetch link_file.py {input.gguf:q} "$OUT/$name.gguf" \
                --final {output.shards:q}/"$name.gguf" >"$STAGE/notes.json"
        else
            "${{split[@]}}" {input.gguf:q} "$OUT/$name"
            check check_shards.py --whole {input.gguf:q} --shards "$OUT"
        fi
        commit
        """


rule cool:
    """See that another place has a file, note what it was, and delete it here."""
    input:
        recipe=COLD.wanted,
        made=made_from(COLD, "made"),
        after=made_from(COLD, "after"),
    output:
        note=COLD.path,
        recipe=COLD.record,
    log:
        COLD.log,
    benchmark:
        COLD.benchmark
    wildcard_constraints:
        finished="(gguf|labelled|shards)/[^/]+",
    priority: COLD.priority
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(COLD),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        fetch cool.py note {input.made:q} \
            --wanted {input.recipe:q} \
            --output "$OUT" \
            --notes "$STAGE/notes.json" 2>&8
        commit
        fetch cool.py delete {input.made:q} --after {input.after:q} 2>&8
        """
