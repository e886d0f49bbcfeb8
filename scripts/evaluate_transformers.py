"""Evaluate a model directory against base logits: KLD, perplexity, top-token agreement.

transformers runs it in 32-bit floats, on the tokens that the base logits hold, in the same chunks.
It is measured as scripts/evaluate.py measures a GGUF file, and the JSON has the same keys; with
--floor also `floor`, {mean, error}: the KLD of the unquantized model itself by this engine. To be
run in resources/environments/llmcompressor.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import UserError, program
from lib.formats.base_logits import Logits
from lib.formats.by_engine import EngineLogits, arguments, write_evaluation
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import scored
from lib.formats.in_transformers import load


def on_device(model: Any, device: str) -> Any:
    """The model there. Raises UserError for cuda where torch has none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} of this environment finds no CUDA GPU; name a Python that "
            "does under `environments: {llmcompressor: …}`, or let the step run on processors: "
            "--set-resources evaluate_transformers:gpu=0"
        )
    return model.to(device)


class Own(EngineLogits):
    """A model's logits by transformers. device: cpu or cuda."""

    def __init__(self, directory: Path, base: Logits, device: str):
        self.model = on_device(load(directory), device).float()
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(directory).get_text_config()
        bos = {AutoTokenizer.from_pretrained(directory).bos_token_id, config.bos_token_id}
        super().__init__(base, self.model.get_output_embeddings().weight.shape[0], bos)

    def log_probabilities(self, chunk: np.ndarray) -> np.ndarray:
        import torch

        tokens = torch.tensor(chunk, dtype=torch.int64, device=self.model.device)
        with torch.inference_mode():
            logits = self.model(tokens[None], use_cache=False).logits[0, scored(len(chunk))]
            return torch.log_softmax(logits.float(), dim=-1).cpu().numpy()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="that compare (default: 1)")
    calibration_option(parser)
    args = parser.parse_args()
    more = {"engine": "transformers", "shared": shared(args.text, args.calibration)}
    write_evaluation(args, lambda base: Own(args.model, base, args.device), args.threads, more)


if __name__ == "__main__":
    program(main)
