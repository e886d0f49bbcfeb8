"""Train a language model by the clock, dense or a mixture of experts, as demo_train.py does.

It learns a tokenizer and a model from the text of demo_text.py, and writes an ordinary model
directory: bfloat16 safetensors, tokenizer.model and tokenizer.json. The weights are bfloat16 in
training too; AdamW changes masters of 32 bits. What is written are the weights that had the lowest
loss on the held-out texts.

    tied        Llama whose output tensor is its embeddings
    untied      Llama with an output tensor of its own
    moe         Mixtral; --ffn is the width of one expert
"""

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

import demo_train as demo
from lib.errors import UserError, program

WARM_UP = 0.03  # of the time
EVALUATING = 0.1  # of the time goes to held-out text, at most
PIECE = 1_000_000  # characters
BALANCE = 0.02  # weight of the routers' auxiliary loss
COLUMNS = ("step", "seconds", "tokens", "training", *(f"heldout_{name}" for name in demo.DOMAINS))


def configuration(args: argparse.Namespace) -> PreTrainedConfig:
    """The model's configuration, of the kind and size that the command line says."""
    shape = {
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.hidden // args.heads,
        "max_position_embeddings": args.context,
        "tie_word_embeddings": args.kind == "tied",
        "bos_token_id": demo.BOS,
        "eos_token_id": demo.EOS,
    }
    if args.kind != "moe":
        return LlamaConfig(**shape)
    experts = {"num_local_experts": args.experts, "num_experts_per_tok": args.active}
    return MixtralConfig(**shape, **experts)


def losses(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss on a batch of ids, int64 (rows, context), and what the routers of its layers say.

    The loss is the mean cross entropy of the next token in nats. A router's logits are float
    (tokens, experts); a dense model has none.
    """
    routed = {"output_router_logits": True} if hasattr(model, "num_experts_per_tok") else {}
    output = model(input_ids=rows, use_cache=False, **routed)
    logits = output.logits[:, :-1].float().flatten(0, 1)
    loss = functional.cross_entropy(logits, rows[:, 1:].flatten())
    return loss, list(output.router_logits) if routed else []


def shares(logits: Tensor, active: int) -> Tensor:
    """The share of the tokens that each expert of a layer gets, float (experts,), sum `active`."""
    chosen = logits.topk(active).indices
    return functional.one_hot(chosen, logits.shape[-1]).float().mean(0).sum(0)


def imbalance(routers: list[Tensor], active: int) -> Tensor:
    """The auxiliary loss of Switch Transformer, mean of all layers; `active` if all is balanced.

    transformers' own sums over the layers first, so that one layer's favourite hides another's.
    """
    found = [
        logits.shape[-1] * (shares(logits, active) * logits.float().softmax(-1).mean(0)).sum()
        for logits in routers
    ]
    return torch.stack(found).mean()


def encode(tokenizer: bytes, text: str) -> Tensor:
    """The token ids of a long text, int64 (tokens,), in pieces on all cores."""
    processor = SentencePieceProcessor(model_proto=tokenizer)
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    found = processor.encode(pieces, num_threads=os.cpu_count())
    return torch.cat([torch.tensor(ids, dtype=torch.int64) for ids in found])


@torch.inference_mode()
def held_out(model: PreTrainedModel, rows: Tensor, batch: int) -> float:
    """The mean loss on the rows, int64 (rows, context)."""
    parts = rows.split(batch)
    return sum(losses(model, part)[0].item() * len(part) for part in parts) / len(rows)


def train(
    model: PreTrainedModel, text: Tensor, tests: list[Tensor], args: argparse.Namespace
) -> Iterator[tuple[float, ...]]:
    """Train in place for so many seconds; yield a row of COLUMNS now and then.

    text: int64 (tokens,); windows are drawn from all over it. tests: int64 (rows, context) each.
    When it ends, the model has the weights of the row with the lowest mean of its held-out losses.
    Raises UserError if a loss is no longer finite.
    """
    weights = list(model.parameters())
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    model.to(torch.bfloat16)
    matrices, vectors = ([m for m in masters if (m.dim() > 1) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.decay}, {"params": vectors, "weight_decay": 0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    draw = torch.Generator().manual_seed(args.seed)
    peak = args.lr * 256 / args.hidden
    best, lowest, recent = [], math.inf, []
    began = due = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        starts = torch.randint(len(text) - args.context, (args.batch,), generator=draw)
        rows = demo.windows(text, starts, args.context).to(model.device, non_blocking=True)
        loss, routers = losses(model, rows)
        (loss + BALANCE * imbalance(routers, args.active) if routers else loss).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        rate = min(1.0, (progress or 0.001) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        recent.append(loss.item())
        step += 1
        now = time.monotonic()
        progress = (now - began) / args.seconds
        if now < due and progress < 1:
            continue
        found = [held_out(model, test, args.batch) for test in tests]
        due = time.monotonic() + max(args.every, (time.monotonic() - now) / EVALUATING)
        row = (step, now - began, step * rows.numel(), sum(recent) / len(recent), *found)
        if not all(map(math.isfinite, row)):
            raise UserError(f"the loss is no longer a number at step {step}: lower --lr")
        yield row
        recent = []
        if sum(found) < lowest:
            lowest, best = sum(found), [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(weights, best)


def arguments() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kind", choices=("tied", "untied", "moe"), required=True, help="see above")
    add("--text", type=Path, required=True, help="what demo_text.py or more_text.py wrote")
    add("--output", type=Path, required=True, help="model directory to write")
    add("--curve", type=Path, help=f"CSV to write: {', '.join(COLUMNS)}; losses in nats a token")
    add("--seconds", type=float, default=100, help="how long to train, held-out text included")
    add("--every", type=float, default=4, help="seconds between two rows of the curve")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--hidden", type=int, default=1024, help="width; k-quants need a multiple of 256")
    add("--layers", type=int, default=20, help="transformer layers")
    add("--ffn", type=int, default=2816, help="width of the feed-forward layers, or of an expert")
    add("--heads", type=int, default=16, help="attention heads")
    add("--kv-heads", type=int, default=4, help="key and value heads")
    add("--vocab", type=int, default=8192, help="tokens of the vocabulary, bytes included")
    add("--experts", type=int, default=8, help="experts of a layer")
    add("--active", type=int, default=2, help="experts that a token goes to")
    add("--context", type=int, default=512, help="tokens in a window")
    add("--batch", type=int, default=16, help="windows in a step")
    add("--lr", type=float, default=0.003, help="peak for a width of 256; divided by width / 256")
    add("--decay", type=float, default=0.1, help="weight decay")
    add("--seed", type=int, default=0, help="for random weights and for sampling")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    disable_progress_bar()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    texts = {
        name: (args.text / f"{name}.txt").read_text(encoding="utf-8")
        for name in (f"{part}-{domain}" for part in ("train", "heldout") for domain in demo.DOMAINS)
    }
    training = [texts[f"train-{domain}"] for domain in demo.DOMAINS]
    tokenizer = demo.learn_tokenizer(training, args.vocab)
    text = torch.cat([encode(tokenizer, part) for part in training])
    tests = []
    for domain in demo.DOMAINS:
        tokens = encode(tokenizer, texts[f"heldout-{domain}"])
        starts = torch.arange(0, len(tokens) - args.context + 1, args.context)
        tests.append(demo.windows(tokens, starts, args.context).to(args.device))
    torch.manual_seed(args.seed)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(configuration(args), dtype=torch.float32)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size:,} parameters, {len(text):,} tokens of text", flush=True)

    with open(args.curve or os.devnull, "w", newline="") as file:
        curve = csv.writer(file)
        curve.writerow(COLUMNS)
        for row in train(model, text, tests, args):
            curve.writerow([round(value, 4) for value in row])
            file.flush()
            named = zip(COLUMNS, row, strict=True)
            print(", ".join(f"{name} {value:,.5g}" for name, value in named), flush=True)
    found = [held_out(model, test, args.batch) for test in tests]
    print("written: held-out loss " + ", ".join(f"{loss:.4f}" for loss in found))
    if args.kind == "moe":
        with torch.inference_mode():
            _, routers = losses(model, tests[0][: args.batch])
        layers = torch.stack([shares(logits, args.active) for logits in routers])
        print(f"an expert gets {layers.min():.1%} to {layers.max():.1%} of a layer's tokens")
    if args.device == "cuda":
        print(f"GPU memory at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    args.output.mkdir(parents=True, exist_ok=True)
    demo.write_model(model, args.output)
    demo.write_tokenizer(tokenizer, args.context, args.output)


if __name__ == "__main__":
    program(main)
