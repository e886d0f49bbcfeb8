"""compressed-tensors, by llmcompressor; measured by transformers.

needs: the model directory; for some schemes a calibration text; for the quality, the base logits
       of an evaluation text
makes: results/MODEL/compressed-tensors/SCHEME/, results/MODEL/evaluation/SCHEME.json, and
       results/MODEL/evaluation/transformers.json: the unquantized model by the same engine
"""

from lib.run.wildcards import made_by
from lib.stages.compressed_tensors import FORM

COMPRESSED = pattern("results/{model}/compressed-tensors/{scheme}")
# Which are calibrated, the config tells: their paths look like those of others.
CALIBRATED = pattern("results/{calibrated}")
TRANSFORMERS_EVALUATION = pattern("results/{model}/evaluation/{scheme}.json")


# Both rules match FP8_DYNAMIC.json; no quant may have such a name.
ruleorder: evaluate_transformers > evaluate
ruleorder: compressed_tensors_calibrate > compressed_tensors


rule compressed_tensors:
    """Quantize; check that it loads and writes words, and has no NaN or Inf."""
    input:
        recipe=COMPRESSED.wanted,
        environment=made_from(COMPRESSED, "environment"),
        model=made_from(COMPRESSED, "model"),
    output:
        model=directory(COMPRESSED.path),
        recipe=COMPRESSED.record,
    log:
        COMPRESSED.log,
    benchmark:
        COMPRESSED.benchmark
    wildcard_constraints:
        scheme="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    threads: COMPRESSED.threads
    resources:
        **needs(COMPRESSED),
    params:
        scheme=COMPRESSED.option("scheme"),
    # What follows runs in the tool's own environment.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        export OMP_NUM_THREADS={threads} QM_PYTHON={input.environment:q}/venv/bin/python
        script compressed_tensors_quantize.py {input.model:q} \
            --scheme {params.scheme:q} \
            --output "$OUT"
        check check_compressed_tensors.py "$OUT" --json "$STAGE/notes.json"
        commit
        """


rule compressed_tensors_calibrate:
    """Quantize with a calibration text; check as above."""
    input:
        recipe=CALIBRATED.wanted,
        environment=made_from(CALIBRATED, "environment"),
        model=made_from(CALIBRATED, "model"),
        corpus=made_from(CALIBRATED, "corpus"),
    output:
        model=directory(CALIBRATED.path),
        recipe=CALIBRATED.record,
    log:
        CALIBRATED.log,
    benchmark:
        CALIBRATED.benchmark
    wildcard_constraints:
        calibrated=made_by(
            session.graph, "compressed_tensors_calibrate", "results/", ""
        ),
    conda:
        "../envs/quantmill.yaml"
    threads: CALIBRATED.threads
    resources:
        **needs(CALIBRATED),
        gpu=0,
    params:
        scheme=CALIBRATED.option("scheme"),
        method=CALIBRATED.option("method"),
        rows=CALIBRATED.option("rows"),
        length=CALIBRATED.option("length"),
    # What follows runs in the tool's own environment.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        export QM_PYTHON={input.environment:q}/venv/bin/python
        script compressed_tensors_calibrate.py {input.model:q} \
            --scheme {params.scheme:q} \
            --method {params.method:q} \
            --text {input.corpus:q} \
            --rows {params.rows:q} \
            --length {params.length:q} \
            --output "$OUT"
        check check_compressed_tensors.py "$OUT" --json "$STAGE/notes.json"
        commit
        """


rule evaluate_transformers:
    """Measure a form, or the unquantized model, against the base logits."""
    input:
        recipe=TRANSFORMERS_EVALUATION.wanted,
        environment=made_from(TRANSFORMERS_EVALUATION, "environment"),
        form=made_from(TRANSFORMERS_EVALUATION, "form"),
        floor=made_from(TRANSFORMERS_EVALUATION, "floor"),
        logits=made_from(TRANSFORMERS_EVALUATION, "base"),
        text=made_from(TRANSFORMERS_EVALUATION, "corpus"),
        calibration=made_from(TRANSFORMERS_EVALUATION, "calibration"),
    output:
        evaluation=TRANSFORMERS_EVALUATION.path,
        recipe=TRANSFORMERS_EVALUATION.record,
    log:
        TRANSFORMERS_EVALUATION.log,
    benchmark:
        TRANSFORMERS_EVALUATION.benchmark
    wildcard_constraints:
        scheme=f"([^/]+/)?({FORM})",  # TEXT/FP8_DYNAMIC where that is a further text
    priority: TRANSFORMERS_EVALUATION.priority
    conda:
        "../envs/quantmill.yaml"
    threads: TRANSFORMERS_EVALUATION.threads
    resources:
        **needs(TRANSFORMERS_EVALUATION),
        gpu=0,
    params:
        corpus=TRANSFORMERS_EVALUATION.option("corpus"),
        floor=lambda wildcards, input: [
            word for path in input.floor for word in ("--floor", path)
        ],
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
        device=lambda wildcards, resources: "cuda" if resources.gpu else "cpu",
    # What follows runs in the tool's own environment.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        export OMP_NUM_THREADS={threads} QM_PYTHON={input.environment:q}/venv/bin/python
        script evaluate_transformers.py {input.form:q} \
            --base {input.logits:q} \
            --text {input.text:q} \
            --corpus {params.corpus:q} \
            {params.floor:q} \
            {params.calibration:q} \
            --device {params.device} \
            --threads {threads} \
            --output "$OUT"
        commit
        """
