"""Measure how fast exllamav3 runs an EXL3 directory, as llama-bench does with a GGUF file.

Its last line is JSON: {backend, prompt: [tokens a second, for each repetition], text: [the same]}.
Tokens are drawn at random, so that neither a tokenizer nor sampling is measured. Written for
exllamav3 1.6.5. To be run in resources/environments/exllamav3.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from lib.errors import UserError, program
from lib.flags.speed import cuda_figures, speed_parser
from lib.formats.exllamav3 import check_quantized

PAGE = 256  # a cache has whole pages of tokens


class Engine:
    """A model in exllamav3, with a cache for `length` tokens."""

    def __init__(self, directory: Path, length: int):
        from exllamav3 import Cache, Config, Model

        config = Config.from_directory(str(directory))
        self.vocabulary, self.room = config.vocab_size, -(-length // PAGE) * PAGE
        self.model = Model.from_config(config)
        self.cache = Cache(self.model, max_num_tokens=self.room)
        self.model.load(max_chunk_size=self.room)

    def run(self, parts: int, length: int) -> None:
        """Send `parts` times `length` random tokens through the model, from an empty cache."""
        import torch

        tokens, states = torch.randint(self.vocabulary, (parts, 1, length)), None
        for number, part in enumerate(tokens):
            params = {"attn_mode": "flash_attn", "cache": self.cache, "last_tokens_only": 1}
            params |= {"batch_shape": (1, self.room), "past_len": number * length}
            params |= {"recurrent_states": states} if states else {}
            self.model.forward(part, params)
            states = params.get("recurrent_states")
            torch.cuda.synchronize()
        for state in states or ():
            self.cache.release_state(state)


def main() -> None:
    arguments = speed_parser(__doc__).parse_args()
    check_quantized(arguments.form)
    if find_spec("exllamav3") is None:
        raise UserError("this Python has no exllamav3; run it by resources/environments/exllamav3")
    engine = Engine(arguments.form, max(arguments.prompt_tokens, arguments.text_tokens))
    print(json.dumps(cuda_figures(engine.run, arguments)))


if __name__ == "__main__":
    program(main)
