"""Quality: KL divergence, perplexity and top-token agreement against the unquantized model; tasks.

needs: the unquantized GGUF, every GGUF form, an evaluation text; files of tasks
makes: results/MODEL/evaluation/base.kld (large, reclaimed), results/MODEL/evaluation/FORM.json;
       of further texts results/MODEL/evaluation/TEXT/base.kld and results/MODEL/evaluation/TEXT/FORM.json;
       results/MODEL/evaluation/tasks/TASK/FORM.json, results/MODEL/harness/TASK.json
"""

from lib.flags.context import context_flags
from lib.flags.tasks import task_flags

# With further texts (`also`) form is TEXT/FORM, and base is TEXT/base.
BASE_LOGITS = pattern("results/{model}/evaluation/{base}.kld")
EVALUATION = pattern("results/{model}/evaluation/{form}.json")
TASK = pattern("results/{model}/evaluation/tasks/{task}/{form}.json")
HARNESS = pattern("results/{model}/harness/{task}.json")


rule base_logits:
    """The unquantized model's logits over the evaluation text, once a model."""
    input:
        recipe=BASE_LOGITS.wanted,
        tools=made_from(BASE_LOGITS, "llama.cpp"),
        gguf=made_from(BASE_LOGITS, "gguf"),
        corpus=made_from(BASE_LOGITS, "corpus"),
    output:
        logits=temp(BASE_LOGITS.path),
        recipe=BASE_LOGITS.record,
    log:
        BASE_LOGITS.log,
    benchmark:
        BASE_LOGITS.benchmark
    wildcard_constraints:
        base="([^/]+/)?base",
    conda:
        "../envs/quantmill.yaml"
    threads: BASE_LOGITS.threads
    resources:
        **needs(BASE_LOGITS),
        gpu=0,
    params:
        flags=BASE_LOGITS.flags(context_flags),
        context=BASE_LOGITS.option("context"),
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        {input.tools:q}/bin/llama-perplexity \
            --model {input.gguf:q} \
            --file {input.corpus:q} \
            {params.flags:q} \
            --n-gpu-layers {params.gpu_layers} \
            --threads {threads} \
            --kl-divergence-base "$OUT"
        check check_base_logits.py "$OUT" --context {params.context:q}
        commit
        """


rule evaluate:
    """Measure a form against the base logits."""
    input:
        recipe=EVALUATION.wanted,
        tools=made_from(EVALUATION, "llama.cpp"),
        gguf=made_from(EVALUATION, "gguf"),
        logits=made_from(EVALUATION, "base"),
        text=made_from(EVALUATION, "corpus"),
        calibration=made_from(EVALUATION, "calibration"),
    output:
        evaluation=EVALUATION.path,
        recipe=EVALUATION.record,
    log:
        EVALUATION.log,
    benchmark:
        EVALUATION.benchmark
    wildcard_constraints:
        form="([^/]+/)?[^/]+",
    priority: EVALUATION.priority
    conda:
        "../envs/quantmill.yaml"
    threads: EVALUATION.threads
    resources:
        **needs(EVALUATION),
        gpu=0,
    params:
        corpus=EVALUATION.option("corpus"),
        flags=EVALUATION.flags(context_flags),
        calibration=lambda wildcards, input: [
            word for path in input.calibration for word in ("--calibration", path)
        ],
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        beside check_gguf.py {input.gguf:q} \
            --completion-tool {input.tools:q}/bin/llama-completion \
            --threads {threads} \
            --json "$STAGE/notes.json"
        script evaluate.py \
            --base {input.logits:q} \
            --text {input.text:q} \
            --corpus {params.corpus:q} \
            --threads {threads} \
            {params.calibration:q} \
            --output "$OUT" \
            -- \
            {input.tools:q}/bin/llama-perplexity \
            --model {input.gguf:q} \
            {params.flags:q} \
            --n-gpu-layers {params.gpu_layers} \
            --threads {threads}
        commit
        """


rule evaluate_task:
    """Measure how many tasks of the user's file a form solves."""
    input:
        recipe=TASK.wanted,
        tools=made_from(TASK, "llama.cpp"),
        gguf=made_from(TASK, "gguf"),
    output:
        score=TASK.path,
        recipe=TASK.record,
    log:
        TASK.log,
    benchmark:
        TASK.benchmark
    wildcard_constraints:
        task="[^/]+",
    priority: TASK.priority
    conda:
        "../envs/quantmill.yaml"
    threads: TASK.threads
    resources:
        **needs(TASK),
        gpu=0,
    params:
        file=lambda wildcards: TASK.made(wildcards).file,
        flags=TASK.flags(task_flags),
        gpu_layers=lambda wildcards, resources: 99 if resources.gpu else 0,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        fetch copy_file.py {params.file:q} --recipe {input.recipe:q} --output "$STAGE/tasks"
        script evaluate_task.py "$STAGE/tasks" \
            {params.flags:q} \
            --model {input.gguf:q} \
            --output "$OUT" \
            -- \
            {input.tools:q}/bin/llama-perplexity \
            --n-gpu-layers {params.gpu_layers} \
            --threads {threads}
        commit
        """


rule evaluate_harness:
    """Measure how many tasks of the user's file the model's own weights solve."""
    input:
        recipe=HARNESS.wanted,
        environment=made_from(HARNESS, "environment"),
        model=made_from(HARNESS, "model"),
    output:
        score=HARNESS.path,
        recipe=HARNESS.record,
    log:
        HARNESS.log,
    benchmark:
        HARNESS.benchmark
    wildcard_constraints:
        task="[^/]+",
    conda:
        "../envs/quantmill.yaml"
    threads: HARNESS.threads
    resources:
        **needs(HARNESS),
        gpu=0,
    params:
        file=lambda wildcards: HARNESS.made(wildcards).file,
        flags=HARNESS.flags(task_flags),
        device=lambda wildcards, resources: "cuda" if resources.gpu else "cpu",
    # A text at a time: for each token of a batch and word of the vocabulary the harness takes 14
    # bytes. 32 texts of 270 tokens, 128,256 words, a model of 0.5 GB: 1.6 GB and 24 s of CPU;
    # 16 texts at a time take 8.6 GB and 23 s.
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        fetch copy_file.py {params.file:q} --recipe {input.recipe:q} --output "$STAGE/tasks"
        OMP_NUM_THREADS={threads} script evaluate_harness.py "$STAGE/tasks" \
            {params.flags:q} \
            --model {input.model:q} \
            --output "$OUT" \
            -- \
            {input.environment:q}/venv/bin/lm_eval run \
            --model hf \
            --batch_size 1 \
            --device {params.device}
        commit
        """
