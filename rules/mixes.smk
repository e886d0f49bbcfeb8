"""Mixes: the best type for each tensor within a size or a KL divergence, and the quants made so.

needs: the unquantized GGUF, its importance matrix, a calibration text, for max_kld a validation text
makes: results/MODEL/sensitivity.json, results/MODEL/mixes/NAME.txt, results/MODEL/gguf/MODEL-NAME.gguf
"""

from lib.flags.mixes import max_kld_flags, sensitivity_flags, target_flags
from lib.run.wildcards import made_by

SENSITIVITY = pattern("results/{model}/sensitivity.json")
MIX = pattern("results/{model}/mixes/{quant}.txt")
# Which mixes and quants these are, the config tells: their paths look like those of others.
MIX_BY_KLD = pattern("results/{mix}.txt")
QUANT_OF_MIX = pattern("results/{mixed}.gguf")


ruleorder: mix_by_kld > mix
ruleorder: quantize_mix > quantize


rule sensitivity:
    """Measure what each tensor loses in each type, once for all mixes of a model."""
    input:
        recipe=SENSITIVITY.wanted,
        tools=made_from(SENSITIVITY, "llama.cpp"),
        gguf=made_from(SENSITIVITY, "gguf"),
        imatrix=made_from(SENSITIVITY, "imatrix"),
        corpus=made_from(SENSITIVITY, "corpus"),
    output:
        sensitivity=SENSITIVITY.path,
        recipe=SENSITIVITY.record,
    log:
        SENSITIVITY.log,
    benchmark:
        SENSITIVITY.benchmark
    priority: SENSITIVITY.priority
    conda:
        "../envs/quantmill.yaml"
    threads: SENSITIVITY.threads
    resources:
        **needs(SENSITIVITY),
        gpu=0,
    params:
        flags=SENSITIVITY.flags(sensitivity_flags),
        digest=lambda wildcards: SENSITIVITY.made(wildcards).digest,
        # On a CPU; on GPUs the program knows how many fit.
        side_by_side=lambda wildcards, threads: min(threads, 8),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        script sensitivity.py {input.gguf:q} \
            --imatrix {input.imatrix:q} \
            --text {input.corpus:q} \
            {params.flags:q} \
            --tools {input.tools:q}/bin \
            --threads {resources.tool_threads} \
            --side-by-side {params.side_by_side} \
            --gpus {resources.gpu} \
            --work resources/work/mixes/{wildcards.model:q} \
            --recipe-digest {params.digest:q} \
            --output "$OUT"
        commit
        """


rule mix:
    """Choose the type of each tensor: the least loss within a size."""
    input:
        recipe=MIX.wanted,
        gguf=made_from(MIX, "gguf"),
        sensitivity=made_from(MIX, "sensitivity"),
    output:
        mix=MIX.path,
        recipe=MIX.record,
    log:
        MIX.log,
    benchmark:
        MIX.benchmark
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(MIX),
    params:
        target=MIX.flags(target_flags),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script mix.py {input.gguf:q} \
            --sensitivity {input.sensitivity:q} \
            {params.target:q} \
            --notes "$STAGE/notes.json" \
            --output "$OUT"
        commit
        """


rule mix_by_kld:
    """Find the smallest mix whose KL divergence, measured on the validation text, is low enough."""
    input:
        recipe=MIX_BY_KLD.wanted,
        tools=made_from(MIX_BY_KLD, "llama.cpp"),
        gguf=made_from(MIX_BY_KLD, "gguf"),
        imatrix=made_from(MIX_BY_KLD, "imatrix"),
        sensitivity=made_from(MIX_BY_KLD, "sensitivity"),
        corpus=made_from(MIX_BY_KLD, "corpus"),
    output:
        mix=MIX_BY_KLD.path,
        recipe=MIX_BY_KLD.record,
    log:
        MIX_BY_KLD.log,
    benchmark:
        MIX_BY_KLD.benchmark
    wildcard_constraints:
        mix=made_by(session.graph, "mix_by_kld", "results/", ".txt"),
    priority: MIX_BY_KLD.priority
    conda:
        "../envs/quantmill.yaml"
    threads: MIX_BY_KLD.threads
    resources:
        **needs(MIX_BY_KLD),
        gpu=0,
    params:
        flags=MIX_BY_KLD.flags(max_kld_flags),
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        script mix_by_kld.py {input.gguf:q} \
            --sensitivity {input.sensitivity:q} \
            --imatrix {input.imatrix:q} \
            --text {input.corpus:q} \
            {params.flags:q} \
            --tools {input.tools:q}/bin \
            --threads {resources.tool_threads} \
            --gpu-layers {params.gpu_layers} \
            --notes "$STAGE/notes.json" \
            --output "$OUT"
        commit
        """


rule quantize_mix:
    """Quantize the unquantized GGUF by a mix; check that each tensor has its type."""
    input:
        recipe=QUANT_OF_MIX.wanted,
        after=QUANT_OF_MIX.after,
        tools=made_from(QUANT_OF_MIX, "llama.cpp"),
        gguf=made_from(QUANT_OF_MIX, "gguf"),
        imatrix=made_from(QUANT_OF_MIX, "imatrix"),
        mix=made_from(QUANT_OF_MIX, "mix"),
    output:
        gguf=QUANT_OF_MIX.path,
        recipe=QUANT_OF_MIX.record,
    log:
        QUANT_OF_MIX.log,
    benchmark:
        QUANT_OF_MIX.benchmark
    wildcard_constraints:
        mixed=made_by(session.graph, "quantize_mix", "results/", ".gguf"),
    conda:
        "../envs/quantmill.yaml"
    threads: QUANT_OF_MIX.threads
    resources:
        **needs(QUANT_OF_MIX),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        type=$(script mix_type.py {input.mix:q})
        {input.tools:q}/bin/llama-quantize \
            --imatrix {input.imatrix:q} \
            --tensor-type-file {input.mix:q} \
            {input.gguf:q} "$OUT" "$type" {resources.tool_threads}
        check check_quant.py "$OUT" --of {input.gguf:q}
        check check_mix.py "$OUT" --mix {input.mix:q} --record {input.mix:q}.recipe.json
        commit
        """
