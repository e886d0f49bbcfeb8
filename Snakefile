# Quantmill: merged, converted, quantized, split and measured model files, from one config.
#
#     snakemake --cores all                                  builds what is stale
#     snakemake --cores all --directory my                   your own config, my/config/config.yaml; see config/README.md
#     snakemake plan --configfile mine.yaml                  one of another name; targets come before --configfile
#     snakemake --list-target-rules                          what else can be asked for

import os

from snakemake.utils import min_version

min_version("9.27")

# A config on the command line replaces the default one. The working directory's own comes before the embedded one.
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
include: "rules/merge.smk"
include: "rules/gguf.smk"
include: "rules/imatrix.smk"
include: "rules/quantize.smk"
include: "rules/exl2.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/publish.smk"
include: "rules/answers.smk"
include: "rules/targets.smk"
