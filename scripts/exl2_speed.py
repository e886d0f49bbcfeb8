"""Measure how fast exllamav2 runs an EXL2 directory, as llama-bench does with a GGUF file.

Its last line is JSON: {backend, prompt: [tokens a second, for each repetition], text: [the same]}.
Tokens are drawn at random, so that neither a tokenizer nor sampling is measured. Written for
exllamav2 0.3.2. To be run in resources/environments/exllamav2.
"""

import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from lib.errors import UserError, program
from lib.flags.speed import cuda_figures, speed_parser
from lib.formats.exllamav2 import ENVIRONMENT, readable

LOADED = 256  # tokens that loading sends through the model, at least


class Engine:
    """A model in exllamav2, with a cache for `length` tokens."""

    def __init__(self, directory: Path, length: int):
        from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config

        config = ExLlamaV2Config(str(directory))
        config.arch_compat_overrides()
        config.max_input_len = length = max(length, LOADED)
        self.model = ExLlamaV2(config)
        self.cache = ExLlamaV2Cache(self.model, max_seq_len=length, lazy=True)
        self.model.load_autosplit(self.cache)

    def run(self, parts: int, length: int) -> None:
        """Send `parts` times `length` random tokens through the model, from an empty cache."""
        import torch

        self.cache.current_seq_len = 0
        tokens = torch.randint(self.model.config.vocab_size, (parts, 1, length))
        for part in tokens:
            self.model.forward(part, self.cache, last_id_only=True)
            torch.cuda.synchronize()


def main() -> None:
    arguments = speed_parser(__doc__).parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as scratch:
        model = readable(arguments.form, Path(scratch) / "model")
        if find_spec("exllamav2") is None:
            raise UserError(
                "this Python has no exllamav2; run it by resources/environments/exllamav2"
            )
        engine = Engine(model, max(arguments.prompt_tokens, arguments.text_tokens))
        found = cuda_figures(engine.run, arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    program(main)
