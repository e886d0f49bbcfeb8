"""Merges.

needs: the model directories that the merge names, other merges among them
makes: results/MODEL/safetensors/; a candidate's is results/studies/STUDY/candidates/ID/safetensors/
"""

from lib.run.wildcards import owner, reclaimed

MERGE = pattern("results/{model}/safetensors")


rule merge:
    """Merge models with mergekit, by the mergekit configuration in the config."""
    input:
        recipe=MERGE.wanted,
        models=made_from(MERGE, "model"),
        same=made_from(MERGE, "same"),
        after=made_from(MERGE, "after"),
    output:
        model=directory(MERGE.path),
        recipe=MERGE.record,
    log:
        MERGE.log,
    benchmark:
        MERGE.benchmark
    conda:
        "../envs/quantmill.yaml"
    threads: MERGE.threads
    resources:
        **needs(MERGE),
        gpu=0,
    params:
        seed=lambda wildcards: MERGE.option("random_seed")(wildcards) or 0,
        pickle=lambda wildcards: (
            ["--allow-pickle"] if MERGE.option("allow_pickle")(wildcards) else []
        ),
        gpu=lambda wildcards, resources: (
            ["--cuda", "--low-cpu-memory"] if resources.gpu else []
        ),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        same {input.same:q}
        gpus {resources.gpu} {resources.gpu_mb}
        script merge_config.py {input.recipe:q} "$STAGE"
        script merge.py \
            --config "$STAGE/merge.yaml" \
            --verbatim "$STAGE/verbatim.yaml" \
            --names "$STAGE/names.json" \
            --seed {params.seed:q} \
            {params.pickle:q} {params.gpu:q} \
            --output "$OUT"
        check count_parameters.py "$OUT" >"$STAGE/notes.json"
        commit
        """


use rule merge as merge_reclaimed with:
    output:
        model=temp(directory(MERGE.path)),
        recipe=MERGE.record,
    wildcard_constraints:
        model=reclaimed(session.graph, "merge", owner),


ruleorder: merge_reclaimed > merge
