"""The tools of llama.cpp: its converter and its compiled programs."""

from lib.record.artifact import Artifact
from lib.stages.stage import Size, Sizing, Stage


class LlamaCppStage(Stage):
    """Compile llama.cpp, once a machine."""

    rule = "llama_cpp"
    # It counts for one core, so that it never waits, and compiles on all of them.
    takes_all = True
    start_s = 600.0
    priority = 2

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """0: its files are links into the cache that all checkouts share."""
        return Size(0, "tensors")


STAGES = (LlamaCppStage(),)
