"""MLX, by mlx-lm's own converter; measured by mlx. All on processors.

needs: the model directory; for the quality, the base logits of an evaluation text
makes: results/MODEL/mlx/4bit/, results/MODEL/evaluation/4bit.json, and
       results/MODEL/evaluation/mlx.json: the unquantized model by the same engine
"""

from lib.flags.mlx import mlx_flags
from lib.stages.mlx import FORM, UNQUANTIZED

MLX = pattern("results/{model}/mlx/{form}")
MLX_EVALUATION = pattern("results/{model}/evaluation/{form}.json")


# Both rules match 4bit.json; no quant may have such a name.
ruleorder: mlx_evaluate > evaluate


rule mlx_convert:
    """Quantize; check that it loads and writes words, and has no NaN or Inf."""
    input:
        recipe=MLX.wanted,
        environment=made_from(MLX, "environment"),
        model=made_from(MLX, "model"),
    output:
        model=directory(MLX.path),
        recipe=MLX.record,
    log:
        MLX.log,
    benchmark:
        MLX.benchmark
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(MLX),
    params:
        flags=MLX.flags(mlx_flags),
    # Its card is an empty one. transformers (5.24.0) writes into tokenizer_config.json whether
    # HF_HUB_OFFLINE is set; nothing is fetched for a directory.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        HF_HUB_OFFLINE=0 {input.environment:q}/venv/bin/mlx_lm.convert \
            --hf-path {input.model:q} \
            --mlx-path "$OUT" \
            {params.flags:q}
        rm "$OUT"/README.md
        script mlx_config.py "$OUT"
        QM_PYTHON={input.environment:q}/venv/bin/python
        check check_mlx.py "$OUT" --json "$STAGE/notes.json"
        commit
        """


rule mlx_evaluate:
    """Measure a form, or the unquantized model, against the base logits."""
    input:
        recipe=MLX_EVALUATION.wanted,
        environment=made_from(MLX_EVALUATION, "environment"),
        model=made_from(MLX_EVALUATION, "model"),
        floor=made_from(MLX_EVALUATION, "floor"),
        logits=made_from(MLX_EVALUATION, "base"),
    output:
        evaluation=MLX_EVALUATION.path,
        recipe=MLX_EVALUATION.record,
    log:
        MLX_EVALUATION.log,
    benchmark:
        MLX_EVALUATION.benchmark
    wildcard_constraints:
        form=f"([^/]+/)?({FORM}|{UNQUANTIZED})",  # TEXT/4bit where that is a further text
    priority: MLX_EVALUATION.priority
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(MLX_EVALUATION),
    params:
        corpus=MLX_EVALUATION.option("corpus"),
        floor=lambda wildcards, input: [
            word for path in input.floor for word in ("--floor", path)
        ],
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        QM_PYTHON={input.environment:q}/venv/bin/python
        script mlx_evaluate.py {input.model:q} \
            --base {input.logits:q} \
            --corpus {params.corpus:q} \
            {params.floor:q} \
            --output "$OUT"
        commit
        """
