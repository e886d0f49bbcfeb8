"""Evaluate a model directory in exllamav3 against base logits: KLD, perplexity, top tokens.

exllamav3 runs it, quantized or not, on the tokens that the base logits hold, in the same chunks. It
is measured as scripts/evaluate.py measures a GGUF file, and the JSON has the same keys; with
--floor also `floor`, {mean, error}: the KLD of the unquantized model itself by this engine. Main
memory holds the hidden states of all chunks, 4 bytes x tokens x hidden size. To be run in
resources/environments/exllamav3.
"""

from pathlib import Path

import numpy as np

from lib.errors import program
from lib.formats.base_logits import Logits
from lib.formats.by_engine import EngineLogits, arguments, write_evaluation
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import scored
from lib.formats.exllamav3 import Streamed


class Own(EngineLogits):
    """A model's logits by exllamav3, computed in the order of the chunks."""

    def __init__(self, directory: Path, base: Logits):
        model = Streamed(directory)
        import torch
        from exllamav3 import Tokenizer

        bos = {model.config.bos_token_id, Tokenizer.from_config(model.config).bos_token_id}
        super().__init__(base, model.config.vocab_size, bos)
        rows = torch.tensor(self._read, dtype=torch.int64).split(1)
        self._logits = model.logits(model.states(rows, scored(base.tokens.shape[1])))

    def log_probabilities(self, chunk: np.ndarray) -> np.ndarray:
        return next(self._logits).log_softmax(dim=-1).cpu().numpy()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--threads", type=int, default=1, help="that compare (default: 1)")
    calibration_option(parser)
    args = parser.parse_args()
    more = {"engine": "exllamav3", "shared": shared(args.text, args.calibration)}
    write_evaluation(args, lambda base: Own(args.model, base), args.threads, more)


if __name__ == "__main__":
    program(main)
