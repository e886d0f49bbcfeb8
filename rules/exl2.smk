"""EXL2, by exllamav2's own converter; needs a CUDA GPU.

needs: the model directory; a calibration text in parquet, or exllamav2's own set; the user's
       measurement, if there is one; for the quality, an evaluation text
makes: results/MODEL/exl2/measurement.json, results/MODEL/exl2/5.0bpw/,
       results/MODEL/evaluation/5.0bpw.json
"""

from lib.flags.context import context_flags
from lib.formats.exllamav2 import exl2_flags
from lib.run.wildcards import models_where

EXL2_MEASUREMENT = pattern("results/{model}/exl2/measurement.json")
EXL2 = pattern("results/{model}/exl2/{bits}bpw")
EXL2_EVALUATION = pattern("results/{model}/evaluation/{bits}bpw.json")


wildcard_constraints:
    bits=r"[\d.]+",


# Both rules match 5.0bpw.json; no quant may have such a name.
ruleorder: exl2_evaluate > evaluate


rule exl2_measure:
    """Measure each layer's error at each precision, once for all bits values of a model."""
    input:
        recipe=EXL2_MEASUREMENT.wanted,
        environment=made_from(EXL2_MEASUREMENT, "environment"),
        extension=made_from(EXL2_MEASUREMENT, "extension"),
        model=made_from(EXL2_MEASUREMENT, "model"),
        calibration=made_from(EXL2_MEASUREMENT, "corpus"),
    output:
        measurement=EXL2_MEASUREMENT.path,
        recipe=EXL2_MEASUREMENT.record,
    log:
        EXL2_MEASUREMENT.log,
    benchmark:
        EXL2_MEASUREMENT.benchmark
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(EXL2_MEASUREMENT),
        gpu=1,
    params:
        flags=EXL2_MEASUREMENT.flags(exl2_flags),
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
        rows=EXL2_MEASUREMENT.option("measurement_rows"),
        length=EXL2_MEASUREMENT.option("measurement_length"),
        digest=lambda wildcards: EXL2_MEASUREMENT.made(wildcards).digest,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q} {input.extension:q}
        check check_calibration.py {input.model:q} {params.calibration:q} \
            --rows {params.rows:q} --length {params.length:q}
        script exl2_convert.py measure \
            --model {input.model:q} \
            {params.calibration:q} \
            {params.flags:q} \
            --work resources/work/exl2/{wildcards.model:q}/measurement \
            --recipe-digest {params.digest:q} \
            --output "$OUT"
        commit
        """


rule exl2_measurement_file:
    """Copy the user's measurement, if it is of a model with as many layers."""
    input:
        recipe=EXL2_MEASUREMENT.wanted,
        model=made_from(EXL2_MEASUREMENT, "model"),
    output:
        measurement=EXL2_MEASUREMENT.path,
        recipe=EXL2_MEASUREMENT.record,
    log:
        EXL2_MEASUREMENT.log,
    benchmark:
        EXL2_MEASUREMENT.benchmark
    wildcard_constraints:
        model=models_where(
            session.config, lambda model: model.exl2 and model.exl2.measurement
        ),
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(EXL2_MEASUREMENT),
    params:
        file=lambda wildcards: EXL2_MEASUREMENT.made(wildcards).file,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        fetch copy_file.py {params.file:q} --recipe {input.recipe:q} --output "$OUT"
        check check_measurement.py \
            --measurement "$OUT" \
            --model {input.model:q} \
            --called models.{wildcards.model:q}".exl2.measurement: "{params.file:q}
        commit
        """


ruleorder: exl2_measurement_file > exl2_measure


rule exl2_quantize:
    """Quantize to one bits value, from the model's measurement."""
    input:
        recipe=EXL2.wanted,
        environment=made_from(EXL2, "environment"),
        extension=made_from(EXL2, "extension"),
        model=made_from(EXL2, "model"),
        measurement=made_from(EXL2, "measurement"),
        calibration=made_from(EXL2, "corpus"),
    output:
        model=directory(EXL2.path),
        recipe=EXL2.record,
    log:
        EXL2.log,
    benchmark:
        EXL2.benchmark
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(EXL2),
        gpu=1,
    params:
        flags=EXL2.flags(exl2_flags),
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
        rows=EXL2.option("rows"),
        length=EXL2.option("length"),
        digest=lambda wildcards: EXL2.made(wildcards).digest,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q} {input.extension:q}
        check check_calibration.py {input.model:q} {params.calibration:q} \
            --rows {params.rows:q} --length {params.length:q}
        script exl2_convert.py quantize \
            --model {input.model:q} \
            --measurement {input.measurement:q} \
            {params.calibration:q} \
            {params.flags:q} \
            --work resources/work/exl2/{wildcards.model:q}/{wildcards.bits:q}bpw \
            --recipe-digest {params.digest:q} \
            --output "$OUT"
        commit
        """


rule exl2_evaluate:
    """Measure a bits value against the unquantized model in exllamav2; write a few words."""
    input:
        recipe=EXL2_EVALUATION.wanted,
        environment=made_from(EXL2_EVALUATION, "environment"),
        extension=made_from(EXL2_EVALUATION, "extension"),
        exl2=made_from(EXL2_EVALUATION, "exl2"),
        model=made_from(EXL2_EVALUATION, "model"),
        corpus=made_from(EXL2_EVALUATION, "corpus"),
        calibration=made_from(EXL2_EVALUATION, "calibration"),
    output:
        evaluation=EXL2_EVALUATION.path,
        recipe=EXL2_EVALUATION.record,
    log:
        EXL2_EVALUATION.log,
    benchmark:
        EXL2_EVALUATION.benchmark
    wildcard_constraints:
        bits=r"([^/]+/)?[\d.]+",  # TEXT/5.0 where that is a further text
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(EXL2_EVALUATION),
        gpu=1,
    params:
        corpus=EXL2_EVALUATION.option("corpus"),
        flags=EXL2_EVALUATION.flags(context_flags),
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q} {input.extension:q}
        script exl2_evaluate.py \
            --model {input.exl2:q} \
            --reference {input.model:q} \
            --text {input.corpus:q} \
            --corpus {params.corpus:q} \
            {params.flags:q} \
            {params.calibration:q} \
            --smoke 128 \
            --output "$OUT"
        commit
        """
