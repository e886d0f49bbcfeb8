"""Evaluate an EXL2 model against the model it was made from: KLD, perplexity, top-token agreement.

Text, windows and scored positions are those of llama-perplexity, and the JSON has the keys that
evaluate.py writes, with `reference` and, with --smoke, `smoke`: {prompt, text, tokens,
tokens_per_second}. KLD is in nats per token, agreement is a fraction. Both models run through
exllamav2, the unquantized one in 16-bit floats. Layers are loaded one at a time, so the GPU needs
memory for one layer or for the two output tensors, whatever the size of the model. Main memory
holds the hidden states of one model, 2 bytes x tokens x hidden size, and half of the other's. To be
run in resources/environments/exllamav2.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from lib.errors import UserError, program
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import MIN_LOG_P, Scored, scored, summary, windows
from lib.formats.exllamav2 import ENVIRONMENT, make_view, readable

REFERENCE = "the unquantized model in 16-bit floats, through exllamav2"


def read_text(corpus: Path) -> str:
    """The text as llama.cpp's tools take it: without one newline at its end.

    Raises UserError if it is not UTF-8.
    """
    try:
        return corpus.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{corpus}: not UTF-8 ({error})") from None


def bos_token(model: Path) -> int | None:
    """The id of the token that llama.cpp puts before a text, as the GGUF converter finds it.

    None if it puts none.
    """
    from gguf import SpecialVocab

    vocabulary = SpecialVocab(model, load_merges=False)
    adds = vocabulary.add_special_token.get("bos")
    if adds is None:  # llama.cpp's own default for sentencepiece
        adds = (model / "tokenizer.model").exists()
    return vocabulary.special_token_ids.get("bos") if adds else None


def tokenize(model: Path, text: str, bos: int | None) -> np.ndarray:
    """Token ids of `text`, int64 (n,), with `bos` before them unless it is None.

    Special tokens that are spelt out in the text are plain text, as for llama.cpp.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(tokens if bos is None else [bos, *tokens], dtype=np.int64)


def compare(logits, base_logits, targets) -> tuple:
    """Per-token values, those of `Scored` in their order, each a tensor (n,).

    `logits` and `base_logits` are float32 tensors (n, vocabulary), `targets` int64 (n,).
    """
    import torch

    log_q = torch.log_softmax(logits, dim=-1)
    log_p = torch.log_softmax(base_logits, dim=-1)
    terms = torch.where(log_p > MIN_LOG_P, log_p.exp() * (log_p - log_q), 0.0)
    pick, tops = targets.unsqueeze(-1), (logits.argmax(dim=-1), base_logits.argmax(dim=-1))
    return (
        -log_q.gather(-1, pick).squeeze(-1),
        -log_p.gather(-1, pick).squeeze(-1),
        terms.sum(dim=-1, dtype=torch.float64),
        tops[0] == tops[1],
        *(top == targets for top in tops),
    )


class Streamed:
    """A model of exllamav2 whose layers are loaded one at a time.

    context: the most tokens that are sent through it at once.
    """

    def __init__(self, directory: Path, context: int):
        from exllamav2 import ExLlamaV2, ExLlamaV2Config

        config = ExLlamaV2Config(str(directory))
        config.arch_compat_overrides()
        config.max_input_len = max(context, 256)
        config.max_attention_size = config.max_input_len**2
        self.model = ExLlamaV2(config)
        self.model.load(lazy=True)
        self.head = self.model.modules[-1]

    def states(self, rows) -> list:
        """The last hidden states at the scored positions of each row of tokens, on the CPU.

        rows: token ids, int64 (chunks, context). For each row a tensor (scored positions, hidden
        size).
        """
        import torch
        from exllamav2.attn import ExLlamaV2Attention

        context = rows.shape[1]
        embedding, *layers = self.model.modules[:-1]
        with torch.inference_mode():
            embedding.load()
            hidden = [embedding.forward(row.unsqueeze(0)) for row in rows]
            embedding.unload()
            params = ExLlamaV2Attention.Params(1, context, 0, None, None)
            for layer in layers:
                layer.load()
                for i, state in enumerate(hidden):
                    hidden[i] = layer.forward(
                        state.to("cuda:0"), cache=None, attn_params=params, past_len=0
                    ).cpu()
                layer.unload()
                torch.cuda.empty_cache()
        return [state[0, scored(context)] for state in hidden]

    def logits(self, states):
        """Logits of hidden states (n, hidden size): float32 (n, vocabulary), on the GPU.

        The output tensor, `head`, must be loaded.
        """
        import torch

        config = self.model.config
        output = self.head.forward(states.to("cuda:0").unsqueeze(0))[
            0, :, : config.vocab_size
        ].float()
        if cap := config.final_logit_softcapping:
            output = cap * torch.tanh(output / cap)
        return output


def evaluate(model: Path, reference: Path, rows: np.ndarray) -> dict:
    """The statistics of `model` against `reference`, keys as in the JSON.

    rows: token ids, int64 (chunks, context). Raises UserError if the vocabularies differ in size.
    """
    import torch

    tokens = torch.from_numpy(rows)
    context = rows.shape[1]
    quantized, base = Streamed(model, context), Streamed(reference, context)
    if quantized.model.config.vocab_size != base.model.config.vocab_size:
        raise UserError(
            f"{model} and {reference} differ in the size of their vocabulary: not the same model"
        )
    pairs = list(zip(quantized.states(tokens), base.states(tokens), strict=True))
    parts = []
    with torch.inference_mode():
        quantized.head.load()
        base.head.load()
        for row, (states, base_states) in zip(tokens, pairs, strict=True):
            targets = row[context // 2 + 1 :].to("cuda:0")
            values = compare(quantized.logits(states), base.logits(base_states), targets)
            parts.append([value.cpu().numpy() for value in values])
        quantized.head.unload()
        base.head.unload()
    return summary(Scored(*(np.stack(arrays) for arrays in zip(*parts, strict=True))))


def smoke(model: Path, prompt: str, count: int) -> dict:
    """{prompt, text, tokens, tokens_per_second} of `count` greedy tokens after `prompt`.

    The first token is not timed. Raises UserError if the text is empty or a logit is not finite.
    """
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config

    config = ExLlamaV2Config(str(model))
    config.arch_compat_overrides()
    tokens = torch.from_numpy(tokenize(model, prompt, bos_token(model))).unsqueeze(0)
    config.max_input_len = 256  # loading sends as much through the model, and through the cache
    network = ExLlamaV2(config)
    length = config.max_input_len + tokens.shape[1] + count + 1
    cache = ExLlamaV2Cache(network, max_seq_len=length, lazy=True)
    network.load_autosplit(cache)

    made = []
    with torch.inference_mode():
        logits = network.forward(tokens, cache, last_id_only=True)
        if not torch.isfinite(logits[..., : config.vocab_size]).all():
            raise UserError(f"{model}: its output is not finite")
        for step in range(count + 1):
            if step == 1:
                torch.cuda.synchronize()
                begin = time.monotonic()
            token = logits[:, -1, : config.vocab_size].argmax(dim=-1, keepdim=True).cpu()
            made.append(int(token))
            logits = network.forward(token, cache, last_id_only=True)
        torch.cuda.synchronize()
        seconds = time.monotonic() - begin

    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(model / "tokenizer.json")).decode(made[:count])
    if not text.strip():
        raise UserError(f"{model}: it generates nothing after {prompt!r}")
    return {"prompt": prompt, "text": text, "tokens": count, "tokens_per_second": count / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory, in EXL2 or not")
    parser.add_argument(
        "--reference", type=Path, required=True, help="directory of the unquantized model"
    )
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--corpus", required=True, help="name of the text, for the JSON")
    parser.add_argument(
        "--ctx-size",
        dest="context",
        type=int,
        default=512,
        help="tokens in a window (default: 512)",
    )
    parser.add_argument("--chunks", type=int, help="number of windows (default: all of the text)")
    parser.add_argument(
        "--smoke", type=int, default=0, metavar="N", help="generate N tokens too, and time them"
    )
    parser.add_argument("--prompt", default="def main():", help="what --smoke begins with")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    calibration_option(parser)
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            view = Path(scratch) / "reference"
            make_view(args.reference, view)
            model = readable(args.model, Path(scratch) / "model")
            bos = bos_token(view)
            tokens = tokenize(view, read_text(args.text), bos)
            rows = windows(tokens, args.context, args.chunks, bos)
            result = evaluate(model, view, rows)
            result |= {"chunks": len(rows), "corpus": args.corpus, "context": args.context}
            result |= {"engine": "exllamav2", "reference": REFERENCE}
            result["shared"] = shared(args.text, args.calibration)
            if args.smoke:
                result["smoke"] = smoke(model, args.prompt, args.smoke)
    except UserError as error:
        raise UserError(f"{args.model}: {error}") from None
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
