"""GGUF files that llama.cpp loads beside a model's: projectors, drafts, LoRA adapters.

needs: a model directory, its unquantized GGUF to try them with; an adapter's directory
makes: results/MODEL/gguf/mmproj-MODEL-OUTTYPE.gguf
       results/MODEL/gguf/mtp-MODEL-OUTTYPE.gguf
       results/MODEL/gguf/MODEL.lora-NAME.gguf
"""

import json

from lib.run.wildcards import adapters

MMPROJ = pattern("results/{model}/gguf/mmproj-{model}-{outtype}.gguf")
MTP = pattern("results/{model}/gguf/mtp-{model}-{outtype}.gguf")
LORA = pattern("results/{model}/gguf/{model}.lora-{adapter}.gguf")


ruleorder: mmproj > quantize
ruleorder: mtp > quantize


rule mmproj:
    """Convert a projector with its tower; check its tensors, and that it reads an image."""
    input:
        recipe=MMPROJ.wanted,
        tools=made_from(MMPROJ, "llama.cpp"),
        model=made_from(MMPROJ, "model"),
        base=made_from(MMPROJ, "base"),
        gguf=made_from(MMPROJ, "gguf"),
    output:
        gguf=MMPROJ.path,
        recipe=MMPROJ.record,
    log:
        MMPROJ.log,
    benchmark:
        MMPROJ.benchmark
    wildcard_constraints:
        outtype="F16|BF16|F32|Q8_0",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(MMPROJ),
    params:
        outtype=MMPROJ.option("outtype"),
        llama_cpp=lambda wildcards: json.dumps(
            MMPROJ.made(wildcards).uses["llama.cpp"].options
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        mkdir "$STAGE/model"
        for base in {input.base:q}; do # of a merge
            find "$(realpath "$base")" -name '*processor_config.json' \
                -exec ln -s {{}} "$STAGE/model" \;
        done
        find -L "$(realpath {input.model:q})" -type f -exec ln -sf {{}} "$STAGE/model" \;
        script convert.py --threads {resources.tool_threads} \
            {input.tools:q}/convert_hf_to_gguf.py "$STAGE/model" \
            --mmproj \
            --outtype {params.outtype:q} \
            --model-name {wildcards.model:q} \
            --outfile "$OUT"
        check check_mmproj.py "$OUT" \
            --model {input.gguf:q} \
            --llama-cpp {params.llama_cpp:q} \
            --threads {resources.tool_threads} \
            --json "$STAGE/notes.json"
        commit
        """


rule mtp:
    """Convert the layers for multi-token prediction; check that they guess what a model writes."""
    input:
        recipe=MTP.wanted,
        tools=made_from(MTP, "llama.cpp"),
        model=made_from(MTP, "model"),
        gguf=made_from(MTP, "gguf"),
    output:
        gguf=MTP.path,
        recipe=MTP.record,
    log:
        MTP.log,
    benchmark:
        MTP.benchmark
    wildcard_constraints:
        outtype="F16|BF16|F32|Q8_0",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(MTP),
    params:
        outtype=MTP.option("outtype"),
        llama_cpp=lambda wildcards: json.dumps(
            MTP.made(wildcards).uses["llama.cpp"].options
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        script convert.py --threads {resources.tool_threads} \
            {input.tools:q}/convert_hf_to_gguf.py {input.model:q} \
            --mtp \
            --outtype {params.outtype:q} \
            --model-name {wildcards.model:q} \
            --outfile "$OUT"
        check check_mtp.py "$OUT" \
            --model {input.gguf:q} \
            --llama-cpp {params.llama_cpp:q} \
            --threads {resources.tool_threads} \
            --json "$STAGE/notes.json"
        commit
        """


rule lora:
    """Convert a LoRA adapter; check that it fits the model, and that logits change with it."""
    input:
        recipe=LORA.wanted,
        tools=made_from(LORA, "llama.cpp"),
        model=made_from(LORA, "model"),
        adapter=made_from(LORA, "adapter"),
        gguf=made_from(LORA, "gguf"),
    output:
        gguf=LORA.path,
        recipe=LORA.record,
    log:
        LORA.log,
    benchmark:
        LORA.benchmark
    wildcard_constraints:
        adapter=adapters(session.config),
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(LORA),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        check check_lora.py {input.adapter:q} --model {input.model:q}
        script lora_view.py {input.adapter:q} --output "$STAGE"/{wildcards.adapter:q}
        HF_HUB_OFFLINE=1 "$QM_PYTHON" {input.tools:q}/convert_lora_to_gguf.py \
            "$STAGE"/{wildcards.adapter:q} \
            --base {input.model:q} \
            --outtype f16 \
            --outfile "$OUT"
        check check_lora.py {input.adapter:q} --model {input.model:q} \
            --lora "$OUT" \
            --gguf {input.gguf:q} \
            --perplexity-tool {input.tools:q}/bin/llama-perplexity \
            --threads {resources.tool_threads} \
            --json "$STAGE/notes.json"
        commit
        """
