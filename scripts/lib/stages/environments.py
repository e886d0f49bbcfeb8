"""Tools with a Python environment of their own: envs/NAME.txt pins its packages."""

from pathlib import Path
from typing import Any

from lib.record.artifact import Artifact
from lib.record.tools import REPOSITORY, package_version
from lib.stages.stage import Cost, Size, Sizing, Stage, Time

FILES = REPOSITORY / "envs"
# The line of envs/NAME.txt below which are packages that decide nothing that the tool makes.
WITHOUT_INFLUENCE = "# Without influence"


class EnvironmentStage(Stage):
    """Install a tool's packages, once a machine."""

    rule = "environment"
    time = Time(60, 1000)  # of a slow network
    cost = Cost(200, 0)
    priority = 2

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """0: it is a link into the cache that all checkouts share."""
        return Size(0, "tensors")


STAGES = (EnvironmentStage(),)


def deciding(requirements: Path) -> dict[str, str]:
    """{package: version} of a tool's pins, without those below WITHOUT_INFLUENCE."""
    lines = requirements.read_text().partition(WITHOUT_INFLUENCE)[0].splitlines()
    pins = (line.partition("==") for line in lines)
    return {name: version for name, _, version in pins if version}


def by_environment(shared: Any, name: str) -> dict[str, Any]:
    """Fields of Artifact for a step that runs in resources/environments/NAME: `tools` and `uses`.

    Packages that envs/NAME.txt lists as without influence are in no recipe. shared:
    lib/stages/shared.Shared.
    """
    tools = deciding(FILES / f"{name}.txt")
    made = shared.once(
        f"resources/environments/{name}",
        "environment",
        {},
        tools=tools | {"python": package_version("python")},
        directory=True,
        links=True,
    )
    return {"tools": tools, "uses": {"environment": made}}
