# Quantmill: merged, converted, quantized, split and measured model files, from one config.
#
#     snakemake --cores all                    builds what is stale
#     snakemake --cores all --directory my     by your own config, my/config/config.yaml (see
#                                              config/README.md)
#     snakemake plan --configfile mine.yaml    shows the plan for a config of another name; targets
#                                              come before --configfile
#     snakemake --list-target-rules            lists what else can be asked for

import os

from snakemake.utils import min_version

min_version("9.27")

# A config on the command line replaces the default one. That is config/config.yaml in the working
# directory; if it is not there, the one of this repository.
default_config = "config/config.yaml"
if not os.path.exists(default_config):
    default_config = f"{workflow.basedir}/{default_config}"
if not workflow.configfiles:

    configfile: default_config


report: "report/workflow.rst"


include: "rules/common.smk"


rule all:
    """Everything that the config declares (the default)."""
    input:
        stale(),


include: "rules/toolchain.smk"
include: "rules/demo.smk"
include: "rules/sources.smk"
include: "rules/similarity.smk"
include: "rules/merge.smk"
include: "rules/moe.smk"
include: "rules/gguf.smk"
include: "rules/extract_lora.smk"
include: "rules/companions.smk"
include: "rules/imatrix.smk"
include: "rules/quantize.smk"
include: "rules/mixes.smk"
include: "rules/exl2.smk"
include: "rules/exl3.smk"
include: "rules/compressed_tensors.smk"
include: "rules/mlx.smk"
include: "rules/evaluate.smk"
include: "rules/studies.smk"
include: "rules/report.smk"
include: "rules/publish.smk"
include: "rules/answers.smk"
include: "rules/targets.smk"
