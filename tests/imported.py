"""What the fork server of tests/fresh.py does before it forks itself for a run.

Nothing of Quantmill, and nothing that reads a variable of the environment.
"""

import snakemake.cli
import snakemake.report.html_reporter  # noqa: F401

snakemake.cli.get_argument_parser()  # looks for plugins among all packages, once a process
