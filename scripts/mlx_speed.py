"""Measure how fast mlx-lm runs an MLX directory, as llama-bench does with a GGUF file.

Its last line is JSON: {backend, prompt: [tokens a second, for each repetition], text: [the same]}.
The figures are those that mlx-lm itself counts, as its own benchmark shows them; a prompt's tokens
are drawn at random. Written for mlx-lm 0.32.2. To be run in resources/environments/mlx.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from lib.errors import UserError, program
from lib.flags.speed import speed_parser
from lib.formats.model_files import model_files


class Engine:
    """A model in mlx-lm."""

    def __init__(self, directory: Path):
        import mlx.core as mx
        from mlx_lm.utils import load

        self.model, self.tokenizer, config = load(str(directory), return_config=True)
        self.tokenizer._eos_token_ids = set()  # so that no text ends early, as mlx_lm.benchmark
        self.vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        on_gpu = mx.default_device() == mx.Device(mx.gpu)
        self.backend = ("Metal" if mx.metal.is_available() else "CUDA") if on_gpu else "CPU"

    def run(self, prompt: int, text: int) -> tuple[float, float]:
        """Tokens a second of a prompt of so many tokens, and of the text that follows it."""
        import mlx.core as mx
        from mlx_lm import stream_generate

        tokens = mx.random.randint(0, self.vocabulary, (prompt,)).tolist()
        *_, last = stream_generate(self.model, self.tokenizer, tokens, max_tokens=text)
        return last.prompt_tps, last.generation_tps


def main() -> None:
    arguments = speed_parser(__doc__).parse_args()
    model_files(arguments.form)
    if find_spec("mlx_lm") is None:
        raise UserError("this Python has no mlx-lm; run it by resources/environments/mlx")
    engine, times = Engine(arguments.form), range(arguments.repetitions + 1)
    prompts = [engine.run(arguments.prompt_tokens, 1)[0] for _ in times]
    texts = [engine.run(1, arguments.text_tokens)[1] for _ in times]
    print(json.dumps({"backend": engine.backend, "prompt": prompts[1:], "text": texts[1:]}))


if __name__ == "__main__":
    program(main)
