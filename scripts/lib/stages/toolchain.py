"""The tools of llama.cpp: its converter and its compiled programs."""

from lib.record.artifact import Artifact
from lib.record.tools import cache_directory
from lib.stages.stage import Cost, Size, Sizing, Stage


class LlamaCppStage(Stage):
    """Compile llama.cpp, once a machine."""

    rule = "llama_cpp"
    # It counts for one core, so that it never waits, and compiles on all of them.
    takes_all = True
    priority = 2

    def cost_of(self, artifact: Artifact) -> Cost:
        """Those of the compiler, unless a checkout on this machine has used it already."""
        (version,) = artifact.tools.values()
        compiled = any(cache_directory().glob(f"llama.cpp-{version}-*/complete"))
        return Cost(1 if compiled else 600)

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """0: its files are links into the cache that all checkouts share."""
        return Size(0, "tensors")


STAGES = (LlamaCppStage(),)
