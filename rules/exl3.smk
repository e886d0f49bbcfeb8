"""EXL3, by exllamav3's own converter; measured by exllamav3. All on a CUDA GPU.

needs: the model directory; a calibration text, or exllamav3's own set; for the quality, the base
       logits of an evaluation text
makes: results/MODEL/exl3/4.0bpw/, results/MODEL/evaluation/4.0bpw-exl3.json, and
       results/MODEL/evaluation/exllamav3.json: the unquantized model by the same engine
"""

from lib.stages.exl3 import UNQUANTIZED

EXL3 = pattern("results/{model}/exl3/{bits}bpw")
EXL3_EVALUATION = pattern("results/{model}/evaluation/{form}.json")


# Both rules match 4.0bpw-exl3.json; no quant may have such a name.
ruleorder: exl3_evaluate > evaluate


rule exl3_quantize:
    """Quantize to one bits value; check that it loads and writes words, and has no NaN."""
    input:
        recipe=EXL3.wanted,
        environment=made_from(EXL3, "environment"),
        extension=made_from(EXL3, "extension"),
        model=made_from(EXL3, "model"),
        calibration=made_from(EXL3, "corpus"),
    output:
        model=directory(EXL3.path),
        recipe=EXL3.record,
    log:
        EXL3.log,
    benchmark:
        EXL3.benchmark
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(EXL3),
        gpu=1,
    params:
        bits=EXL3.option("bits"),
        head_bits=EXL3.option("head_bits"),
        rows=EXL3.option("rows"),
        length=EXL3.option("length"),
        shard_size=EXL3.option("shard_size"),
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
        digest=lambda wildcards: EXL3.made(wildcards).digest,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q} {input.extension:q}
        script exl3_convert.py {input.model:q} \
            --bits {params.bits:q} \
            --head-bits {params.head_bits:q} \
            {params.calibration:q} \
            --rows {params.rows:q} \
            --length {params.length:q} \
            --shard-size {params.shard_size:q} \
            --work resources/work/exl3/{wildcards.model:q}/{wildcards.bits:q}bpw \
            --recipe-digest {params.digest:q} \
            --output "$OUT"
        check check_exl3.py "$OUT" --json "$STAGE/notes.json"
        commit
        """


rule exl3_evaluate:
    """Measure a bits value, or the unquantized model, against the base logits."""
    input:
        recipe=EXL3_EVALUATION.wanted,
        environment=made_from(EXL3_EVALUATION, "environment"),
        extension=made_from(EXL3_EVALUATION, "extension"),
        model=made_from(EXL3_EVALUATION, "model"),
        floor=made_from(EXL3_EVALUATION, "floor"),
        logits=made_from(EXL3_EVALUATION, "base"),
        text=made_from(EXL3_EVALUATION, "corpus"),
        calibration=made_from(EXL3_EVALUATION, "calibration"),
    output:
        evaluation=EXL3_EVALUATION.path,
        recipe=EXL3_EVALUATION.record,
    log:
        EXL3_EVALUATION.log,
    benchmark:
        EXL3_EVALUATION.benchmark
    wildcard_constraints:
        form=rf"([^/]+/)?([\d.]+bpw-exl3|{UNQUANTIZED})",  # TEXT/… where that is a further text
    priority: EXL3_EVALUATION.priority
    conda:
        "../envs/quantmill.yaml"
    threads: EXL3_EVALUATION.threads
    resources:
        **needs(EXL3_EVALUATION),
        gpu=1,
    params:
        corpus=EXL3_EVALUATION.option("corpus"),
        floor=lambda wildcards, input: [
            word for path in input.floor for word in ("--floor", path)
        ],
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q} {input.extension:q}
        script exl3_evaluate.py {input.model:q} \
            --base {input.logits:q} \
            --text {input.text:q} \
            --corpus {params.corpus:q} \
            {params.floor:q} \
            {params.calibration:q} \
            --threads {threads} \
            --output "$OUT"
        commit
        """
