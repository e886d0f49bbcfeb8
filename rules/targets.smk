"""Targets: each builds the stale artifacts of one column of `snakemake status`.

Fresh artifacts are not in the graph of jobs.
"""

from lib.run import lifecycle


localrules:
    similarities,
    merges,
    gguf,
    imatrices,
    mixes,
    quants,
    shards,
    companions,
    evaluations,
    reports,


rule similarities:
    """Every comparison of what a merge is made from."""
    input:
        stale("similarity"),


rule merges:
    """Every merge, also reclaimed ones."""
    input:
        stale("merge"),


rule gguf:
    """Every unquantized GGUF, also reclaimed ones."""
    input:
        stale("gguf"),


rule imatrices:
    """Every importance matrix."""
    input:
        stale("imatrix"),


rule mixes:
    """Every mix, and what was measured to find them."""
    input:
        stale("mixes"),


rule quants:
    """Every quant."""
    input:
        stale("quants"),


rule shards:
    """The shards of every quant."""
    input:
        stale("shards"),


rule companions:
    """Every projector and LoRA adapter."""
    input:
        stale("companions"),


rule evaluations:
    """KL divergence, perplexity and agreement of every form, and what it solves of tasks."""
    input:
        stale("evaluated"),


rule reports:
    """Every report and model card; --report FILE.html puts them into Snakemake's own report."""
    input:
        lambda wildcards: session.every("report") or [workflow.snakefile],


onstart:
    lifecycle.begin(session, workflow.local_exec)


onsuccess:
    lifecycle.end(session)


onerror:
    lifecycle.failed(session)
