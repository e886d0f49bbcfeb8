"""Mixtures of experts.

needs: the model directories that the mixture names, merges among them
makes: results/MODEL/safetensors/, in the place of a merge
"""

from lib.run.wildcards import models_where, owner, reclaimed

MOE = pattern("results/{model}/safetensors")


ruleorder: moe_reclaimed > moe > merge_reclaimed > merge


rule moe:
    """Build a mixture of experts with mergekit-moe; check its tensors."""
    input:
        recipe=MOE.wanted,
        models=made_from(MOE, "model"),
    output:
        model=directory(MOE.path),
        recipe=MOE.record,
    log:
        MOE.log,
    benchmark:
        MOE.benchmark
    wildcard_constraints:
        model=models_where(session.config, lambda model: model.moe is not None),
    conda:
        "../envs/quantmill.yaml"
    threads: MOE.threads
    resources:
        **needs(MOE),
    params:
        seed=lambda wildcards: MOE.option("random_seed")(wildcards) or 0,
        pickle=lambda wildcards: (
            ["--allow-pickle"] if MOE.option("allow_pickle")(wildcards) else []
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus 0
        script moe_config.py {input.recipe:q} "$STAGE"
        check check_moe.py \
            --config "$STAGE/moe.yaml" \
            --names "$STAGE/names.json" {params.pickle:q}
        script moe.py \
            --config "$STAGE/moe.yaml" \
            --verbatim "$STAGE/verbatim.yaml" \
            --names "$STAGE/names.json" \
            --seed {params.seed:q} \
            --output "$OUT"
        check check_moe.py \
            --config "$STAGE/moe.yaml" \
            --names "$STAGE/names.json" \
            --output "$OUT" \
            --json "$STAGE/notes.json"
        commit
        """


use rule moe as moe_reclaimed with:
    output:
        model=temp(directory(MOE.path)),
        recipe=MOE.record,
    wildcard_constraints:
        model=reclaimed(session.graph, "moe", owner),
