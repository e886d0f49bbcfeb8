"""Importance matrices.

needs: the unquantized GGUF; a calibration text, or the user's matrix
makes: results/MODEL/imatrix.dat (or imatrix.gguf)
"""

from lib.flags.imatrix import imatrix_flags
from lib.run.wildcards import models_where

IMATRIX = pattern("results/{model}/imatrix.{format}")


rule imatrix:
    """Compute the importance matrix; check that its tensors and their widths are the model's."""
    input:
        recipe=IMATRIX.wanted,
        tools=made_from(IMATRIX, "llama.cpp"),
        gguf=made_from(IMATRIX, "gguf"),
        corpus=made_from(IMATRIX, "corpus"),
    output:
        imatrix=IMATRIX.path,
        recipe=IMATRIX.record,
    log:
        IMATRIX.log,
    benchmark:
        IMATRIX.benchmark
    wildcard_constraints:
        format="dat|gguf",
    priority: IMATRIX.priority
    conda:
        "../envs/quantmill.yaml"
    threads: IMATRIX.threads
    resources:
        **needs(IMATRIX),
        gpu=0,
    params:
        flags=IMATRIX.flags(imatrix_flags),
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        tool=({input.tools:q}/bin/llama-imatrix)
        # On several GPUs: ranges of chunks side by side.
        if [ {resources.gpu} -gt 1 ]; then
            tool=(script imatrix_ranges.py --tool "${{tool[0]}}" --devices "$CUDA_VISIBLE_DEVICES")
        fi
        "${{tool[@]}}" \
            --model {input.gguf:q} \
            --file {input.corpus:q} \
            {params.flags:q} \
            --output-format {wildcards.format:q} \
            --n-gpu-layers {params.gpu_layers} \
            --threads {threads} \
            --output-file "$OUT"
        check check_imatrix.py --imatrix "$OUT" --model {input.gguf:q} --json "$STAGE/notes.json"
        commit
        """


rule imatrix_file:
    """Copy the user's importance matrix, if its tensors and their widths are the model's."""
    input:
        recipe=IMATRIX.wanted,
        gguf=made_from(IMATRIX, "gguf"),
    output:
        imatrix=IMATRIX.path,
        recipe=IMATRIX.record,
    log:
        IMATRIX.log,
    benchmark:
        IMATRIX.benchmark
    wildcard_constraints:
        model=models_where(
            session.config,
            lambda model: model.gguf
            and model.gguf.imatrix
            and model.gguf.imatrix.file,
        ),
        format="dat|gguf",
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(IMATRIX),
    params:
        file=lambda wildcards: IMATRIX.made(wildcards).file,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        fetch copy_file.py {params.file:q} --recipe {input.recipe:q} --output "$OUT"
        check check_imatrix.py \
            --imatrix "$OUT" \
            --model {input.gguf:q} \
            --called models.{wildcards.model:q}".gguf.imatrix.file: "{params.file:q} \
            --json "$STAGE/notes.json"
        commit
        """


ruleorder: imatrix_file > imatrix
