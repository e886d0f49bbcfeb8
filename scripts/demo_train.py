"""Train the demo's tiny Llama, or fine-tune it on one domain, from the text of demo_text.py.

`base` learns a tokenizer and a model on code and prose alike. `finetune` trains a base model
further, on one of the two, and keeps its tokenizer. Both write an ordinary model directory:
bfloat16 safetensors, tokenizer.model (for llama.cpp) and the equivalent tokenizer.json (for
transformers and ExLlama). The same machine, text and options give the same bytes. The size options
make a larger model with the same script, on a GPU for instance.
"""

import argparse
import copy
import io
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Bytes depend on how work is divided among threads. So on a CPU every operation has one thread,
# whatever the environment says, and each step's batch is divided between two replicas that run side
# by side. (OpenMP's own threads would also spin: a second process on the same cores, and both take
# ten times as long.) These are read when torch is loaded; cuBLAS needs the last to be
# deterministic.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from lib.errors import UserError, program

REPLICAS = 2
SPACE = "\u2581"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2
BOS, EOS = 1, 2
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
TOKENIZER_SAMPLE = 600_000  # characters of each domain that the tokenizer is learned from
PIECE = 4_000  # characters
TRAINING_SAMPLE = 6  # characters to draw from for each token of a run, which has about three
EVALUATION_WINDOWS = 16
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "### {{ message['role'] }}\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
DOMAINS = ("code", "prose")


def thin(text: str, size: int) -> str:
    """About `size` characters of a longer text: pieces from all over it, in their order."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return "".join(pieces[:: max(1, len(text) // size)])


def learn_tokenizer(texts: list[str], vocabulary: int) -> bytes:
    """The tokenizer.model of a sentencepiece BPE tokenizer with byte fallback, learned from texts.

    vocabulary: the number of its tokens.
    """
    model = io.BytesIO()
    lines = (line for text in texts for line in thin(text, TOKENIZER_SAMPLE).splitlines())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def fast_tokenizer(model: bytes) -> Tokenizer:
    """The tokenizers library's equivalent of a sentencepiece BPE model, as Llama 2 has it.

    Raises UserError if the model holds pieces that have no equivalent.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    piece_type = sentencepiece_model_pb2.ModelProto.SentencePiece
    allowed = {piece_type.NORMAL, piece_type.BYTE, piece_type.CONTROL, piece_type.UNKNOWN}
    if {piece.type for piece in proto.pieces} - allowed:
        raise UserError("user-defined pieces cannot be expressed as merges")
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = []  # sentencepiece joins any two neighbours that form a piece, the best piece first
    for piece in proto.pieces:
        if piece.type == piece_type.NORMAL:
            splits = [(piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece))]
            known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
            ranked = sorted(known, key=lambda pair: [vocabulary[half] for half in pair])
            merges += [(-piece.score, pair) for pair in ranked]
    merges.sort(key=lambda merge: merge[0])  # stable
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [pair for _, pair in merges],
            unk_token=SPECIAL["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, BOS)]
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def write_json(path: Path, value: dict) -> None:
    """Write JSON as transformers does: indented by two, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(model: bytes, context: int, output: Path) -> None:
    """Write tokenizer.model, tokenizer.json and their configuration into a model directory.

    model: the content of tokenizer.model. context: the most tokens that the model takes.
    """
    (output / "tokenizer.model").write_bytes(model)
    (output / "tokenizer.json").write_text(
        fast_tokenizer(model).to_str(pretty=True) + "\n", encoding="utf-8"
    )
    write_json(output / "special_tokens_map.json", SPECIAL)
    configuration = {
        # transformers 5 rebuilds a "LlamaTokenizer" by its own rules, which lose the mark that
        # opens a text beginning with a space; this class takes tokenizer.json as it stands.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **SPECIAL,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(output / "tokenizer_config.json", configuration)


def encode(model: bytes, text: str) -> torch.Tensor:
    """The token ids of a text, int64 (tokens,). model: the content of tokenizer.model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return torch.tensor(processor.encode(text), dtype=torch.int64)


def windows(tokens: torch.Tensor, starts: torch.Tensor, context: int) -> torch.Tensor:
    """Windows of tokens, int64 (len(starts), context).

    The first token of each is replaced by BOS, as llama.cpp does in each chunk.
    """
    batch = tokens[starts[:, None] + torch.arange(context)]
    batch[:, 0] = BOS
    return batch


def mean_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token in nats, over a batch of ids (rows, context)."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor, context: int) -> float:
    """Perplexity over the first EVALUATION_WINDOWS windows of a text's tokens, int64 (n,).

    Raises UserError if the text is shorter than one window.
    """
    count = min(EVALUATION_WINDOWS, len(tokens) // context)
    if count == 0:
        raise UserError(f"held-out text of {len(tokens)} tokens: {context} are needed")
    batches = windows(tokens, torch.arange(count) * context, context).to(model.device)

    @torch.inference_mode()
    def loss(batch: torch.Tensor) -> float:
        return mean_loss(model, batch[None]).item()

    with ThreadPoolExecutor(REPLICAS) as workers:
        return math.exp(sum(workers.map(loss, batches)) / count)


def replicate(model: LlamaForCausalLM, count: int) -> list[LlamaForCausalLM]:
    """The model and count - 1 copies that share its weights but have gradients of their own."""
    replicas = [model]
    for _ in range(count - 1):
        other = copy.deepcopy(model)
        for weight, shared in zip(other.parameters(), model.parameters(), strict=True):
            weight.data = shared.data
        replicas.append(other)
    return replicas


def collect_gradients(replicas: list[LlamaForCausalLM]) -> None:
    """Add the gradients of all replicas, in their order, to those of the first."""
    for weight, *others in zip(*(replica.parameters() for replica in replicas), strict=True):
        for other in others:
            weight.grad.add_(other.grad)
            other.grad = None


def train(
    model: LlamaForCausalLM,
    texts: list[torch.Tensor],
    *,
    steps: int,
    batch: int,
    context: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train in place on windows drawn from the texts in turn: AdamW, warm-up, then cosine to 0.

    texts: int64 (n,) each. learning_rate: the peak. In the first three quarters of the steps the
    windows are half as long, so that as many tokens give more steps. Raises UserError if the loss
    is no longer finite.
    """
    draw = torch.Generator().manual_seed(seed)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup,
            0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)),
        ),
    )
    device = model.device.type
    replicas = [model] if device == "cuda" else replicate(model, min(REPLICAS, batch))

    def gradients(replica: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = mean_loss(replica, rows.to(replica.device))
        (loss * len(rows) / batch).backward()
        return loss.detach() * len(rows) / batch

    workers = ThreadPoolExecutor(len(replicas))
    smooth = None
    seen = 0
    began = time.monotonic()
    model.train()
    for step in range(steps):
        length = context // 2 if step < steps * 3 // 4 else context
        seen += batch * length
        rows = []
        for row in range(batch):
            tokens = texts[(step * batch + row) % len(texts)]
            start = torch.randint(len(tokens) - length, (1,), generator=draw)
            rows.append(windows(tokens, start, length))
        shares = torch.cat(rows).tensor_split(len(replicas))
        loss = sum(workers.map(gradients, replicas, shares))
        collect_gradients(replicas)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19 or step == steps - 1:
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss is {value} at step {step + 1}")
            smooth = value if smooth is None else 0.7 * smooth + 0.3 * value
            speed = seen / (time.monotonic() - began)
            print(f"step {step + 1}/{steps} loss {smooth:.3f} {speed:,.0f} tokens/s", flush=True)
    workers.shutdown()
    model.eval()


def new_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama with random weights, of the size that the command line says."""
    configuration = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.context,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    torch.manual_seed(args.seed)
    return LlamaForCausalLM(configuration)


def write_model(model: LlamaForCausalLM, output: Path) -> None:
    """Write config.json, generation_config.json and bfloat16 safetensors."""
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS)
    model.to(dtype=torch.bfloat16, device="cpu").save_pretrained(output)
    for path in output.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors 0.8 makes files that only their owner may read


def arguments() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base", help="tokenizer and model from nothing")
    finetune = commands.add_parser("finetune", help="go on from a base, on one domain")
    for command in (base, finetune):
        is_base = command is base
        command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
        command.add_argument(
            "--text",
            type=Path,
            required=True,
            help="directory with train-*.txt and heldout-*.txt, which demo_text.py writes",
        )
        command.add_argument("--output", type=Path, required=True, help="model directory to write")
        command.add_argument("--seed", type=int, default=0, help="for random weights and sampling")
        command.add_argument(
            "--steps", type=int, default=640 if is_base else 120, help="optimizer steps"
        )
        command.add_argument("--batch", type=int, default=2, help="windows of text in a step")
        command.add_argument("--device", default="cpu", help="cpu or cuda")
        command.add_argument(
            "--lr",
            type=float,
            default=0.003 if is_base else 0.001,
            help="peak learning rate for a width of 256; it is divided by width / 256",
        )
    base.add_argument(
        "--hidden", type=int, default=256, help="width; k-quants need a multiple of 256"
    )
    base.add_argument("--layers", type=int, default=4, help="transformer layers")
    base.add_argument("--ffn", type=int, default=768, help="width of the feed-forward layers")
    base.add_argument("--heads", type=int, default=4, help="attention heads")
    base.add_argument("--kv-heads", type=int, default=2, help="key and value heads")
    base.add_argument(
        "--vocab", type=int, default=2048, help="tokens of the vocabulary, bytes included"
    )
    base.add_argument("--context", type=int, default=512, help="tokens in a window")
    finetune.add_argument(
        "--base", type=Path, required=True, help="model directory that `base` wrote"
    )
    finetune.add_argument("--domain", choices=DOMAINS, required=True, help="what to train on")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train, write the model, print its perplexities. Raises UserError."""
    disable_progress_bar()
    torch.set_num_threads(1)
    # Some CUDA operations have no deterministic form: a warning there, an error on the CPU.
    torch.use_deterministic_algorithms(True, warn_only=args.device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    texts = {
        name: (args.text / f"{name}.txt").read_text(encoding="utf-8")
        for name in (f"{part}-{domain}" for part in ("train", "heldout") for domain in DOMAINS)
    }
    if args.command == "base":
        vocabulary = learn_tokenizer([texts[f"train-{domain}"] for domain in DOMAINS], args.vocab)
        model = new_model(args)
        domains: tuple[str, ...] = DOMAINS
    else:
        vocabulary = (args.base / "tokenizer.model").read_bytes()
        model = LlamaForCausalLM.from_pretrained(args.base, dtype=torch.float32)
        domains = (args.domain,)
    context = model.config.max_position_embeddings
    model.to(args.device)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    held_out = {domain: encode(vocabulary, texts[f"heldout-{domain}"]) for domain in DOMAINS}
    before = {domain: perplexity(model, held_out[domain], context) for domain in DOMAINS}
    sample = TRAINING_SAMPLE * args.steps * args.batch * context // len(domains)
    train(
        model,
        [encode(vocabulary, thin(texts[f"train-{domain}"], sample)) for domain in domains],
        steps=args.steps,
        batch=args.batch,
        context=context,
        learning_rate=args.lr * 256 / model.config.hidden_size,
        seed=args.seed,
    )
    after = {domain: perplexity(model, held_out[domain], context) for domain in DOMAINS}

    args.output.mkdir(parents=True, exist_ok=True)
    write_model(model, args.output)
    if args.command == "base":
        write_tokenizer(vocabulary, context, args.output)
    else:
        for name in TOKENIZER_FILES:
            (args.output / name).write_bytes((args.base / name).read_bytes())
    figures = ", ".join(
        f"{domain} {after[domain]:.1f} (before training {before[domain]:.1f})" for domain in DOMAINS
    )
    print(f"held-out perplexity: {figures}")


def main() -> None:
    run(arguments())


if __name__ == "__main__":
    program(main)
