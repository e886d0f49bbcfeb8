"""LoRA adapters that are extracted from a model.

needs: the model's directory and its base model's
makes: results/MODEL/lora/NAME/, in peft's form
"""

from lib.flags.extract_lora import extract_lora_flags

EXTRACT_LORA = pattern("results/{model}/lora/{adapter}")


rule extract_lora:
    """Extract a LoRA adapter with mergekit; check that peft loads it, and how near it comes."""
    input:
        recipe=EXTRACT_LORA.wanted,
        model=made_from(EXTRACT_LORA, "model"),
        base=made_from(EXTRACT_LORA, "base"),
    output:
        adapter=directory(EXTRACT_LORA.path),
        recipe=EXTRACT_LORA.record,
    log:
        EXTRACT_LORA.log,
    benchmark:
        EXTRACT_LORA.benchmark
    wildcard_constraints:
        adapter="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    threads: EXTRACT_LORA.threads
    resources:
        **needs(EXTRACT_LORA),
    params:
        base=EXTRACT_LORA.option("base"),
        options=EXTRACT_LORA.flags(extract_lora_flags),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        script extract_lora.py \
            --model {input.model:q} \
            --base {input.base:q} \
            --base-name {params.base:q} \
            --output "$OUT" \
            -- {params.options:q}
        check check_extract_lora.py "$OUT" \
            --model {input.model:q} \
            --base {input.base:q} \
            --json "$STAGE/notes.json"
        commit
        """
