"""Tools with a Python environment of their own: envs/NAME.txt pins its packages."""

from pathlib import Path
from typing import Any

from lib.record.artifact import Artifact
from lib.record.interpreter import installed_versions
from lib.record.tools import REPOSITORY, package_version
from lib.stages.stage import Cost, Memory, Size, Sizing, Stage, Time

FILES = REPOSITORY / "envs"
# The line of envs/NAME.txt below which are packages that decide nothing that the tool makes.
WITHOUT_INFLUENCE = "# Without influence"
# Those whose tool compiles an extension for CUDA; it is called as the tool, with `_ext`.
EXTENDED = ("exllamav2", "exllamav3")
# What our programs there import besides what has influence.
IMPORTED = {"exllamav2": ("torch", "tokenizers", "gguf")}


class EnvironmentStage(Stage):
    """Install a tool's packages, once a machine."""

    rule = "environment"
    time = Time(60, 1000)  # of a slow network
    cost = Cost(200, 0)
    priority = 2

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """0: it is a link into the cache that all checkouts share."""
        return Size(0, "tensors")


class ExtensionStage(EnvironmentStage):
    """Compile a tool's extension for the GPU that is there, once a machine."""

    rule = "extension"
    memory = Memory(24000)  # 8 compilers
    fixed_threads = 8
    gpu = "layer"
    on_gpu = True  # for its architecture

    def cost_of(self, artifact: Artifact) -> Cost:
        """exllamav2's took 101 s on 16 cores, exllamav3's more than three times that (measured)."""
        return Cost(1600 if artifact.path.endswith("exllamav2") else 5000, 0)


STAGES = (EnvironmentStage(), ExtensionStage())


def deciding(requirements: Path) -> dict[str, str]:
    """{package: version} of a tool's pins, without those below WITHOUT_INFLUENCE."""
    lines = requirements.read_text().partition(WITHOUT_INFLUENCE)[0].splitlines()
    pins = (line.partition("==") for line in lines)
    return {name: version for name, _, version in pins if version}


def needed(name: str) -> tuple[str, ...]:
    """The packages that an interpreter for the environment `name` must have."""
    return (*deciding(FILES / f"{name}.txt"), *IMPORTED.get(name, ()))


def by_environment(shared: Any, name: str) -> dict[str, Any]:
    """Fields of Artifact for a step that runs in resources/environments/NAME: `tools` and `uses`.

    Packages that envs/NAME.txt lists as without influence are in no recipe. Of an interpreter that
    the config names recipes have the versions that are found there. shared:
    lib/stages/shared.Shared.
    """
    tools, own = deciding(FILES / f"{name}.txt"), shared.config.environments.get(name)
    python = package_version("python")
    if own:
        python, tools = installed_versions(own, tuple(tools))
    made = shared.once(
        f"resources/environments/{name}",
        "environment",
        {"python": own} if own else {},
        tools=tools | {"python": python},
        directory=True,
        links=True,
    )
    return {"tools": tools, "uses": {"environment": made}}


def by_extension(shared: Any, name: str) -> dict[str, Any]:
    """As `by_environment`, for a step that runs the tool's compiled extension too."""
    found = by_environment(shared, name)
    made = shared.once(
        f"resources/extensions/{name}", "extension", {}, directory=True, links=True, **found
    )
    return found | {"uses": found["uses"] | {"extension": made}}
