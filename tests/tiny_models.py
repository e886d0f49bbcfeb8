"""Tiny random Llamas and Mixtrals with real tokenizers, made in about a second."""

import json
import shutil
from pathlib import Path

TEXT = """
def main(argv):
    parser = ArgumentParser(description="Count the words of a file")
    for number, line in enumerate(open(path, encoding="utf-8")):
        print(number, line.rstrip())
The library keeps what it reads in memory until it is closed, so large files need care.
""".strip().splitlines()


def make_llama(
    directory: Path,
    *,
    seed: int = 0,
    near: Path | None = None,
    vocab: int = 512,
    hidden: int = 256,
    layers: int = 2,
    ffn: int = 512,
    tied: bool = False,
    experts: int = 0,
) -> Path:
    """Write config.json and model.safetensors (bfloat16) of a random Llama into `directory`.

    near: a model of the same shape to which small noise is added, as a fine-tune would.
    tied: the output tensor is the embeddings. experts: of each layer; it is a Mixtral then, whose
    tokens go to two of them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "vocab_size": vocab,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if experts:
        config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
        config |= {"num_local_experts": experts, "num_experts_per_tok": 2}
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if tied:
        del shapes["lm_head.weight"]
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (hidden // 2, hidden),
            prefix + "self_attn.v_proj.weight": (hidden // 2, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
        }
        mlps = {"mlp.": ("gate_proj", "up_proj", "down_proj")}
        if experts:
            shapes[prefix + "block_sparse_moe.gate.weight"] = (experts, hidden)
            mlps = {f"block_sparse_moe.experts.{n}.": ("w1", "w3", "w2") for n in range(experts)}
        for mlp, (gate, up, down) in mlps.items():
            shapes |= {
                f"{prefix}{mlp}{gate}.weight": (ffn, hidden),
                f"{prefix}{mlp}{up}.weight": (ffn, hidden),
                f"{prefix}{mlp}{down}.weight": (hidden, ffn),
            }
    draw = torch.Generator().manual_seed(seed)
    start = load_file(near / "model.safetensors") if near else {}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=draw)
        if name in start:
            tensor = start[name].float() + 0.005 * noise
        elif len(shape) == 1:
            tensor = 1 + 0.01 * noise
        else:
            tensor = 0.05 * noise
        tensors[name] = tensor.to(torch.bfloat16)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def make_models(directory: Path, *names: str) -> None:
    """Write a model `base` and near it one of each name, with one tokenizer, into `directory`."""
    base = make_llama(directory / "base")
    make_sentencepiece(base)
    for seed, name in enumerate(names, 1):
        model = make_llama(directory / name, seed=seed, near=base)
        for file in base.glob("tokenizer*"):
            shutil.copy(file, model)


def make_texts(directory: Path, repeats: int) -> None:
    """Write calibration.txt and evaluation.txt, of so many times TEXT's lines, into `directory`."""
    directory.mkdir(exist_ok=True)
    (directory / "calibration.txt").write_text("\n".join(TEXT * repeats))
    (directory / "evaluation.txt").write_text("\n".join(list(reversed(TEXT)) * repeats))


def make_sentencepiece(directory: Path, vocab: int = 512) -> None:
    """Train a tokenizer.model as Llama's (BPE with byte fallback), which the converter takes."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 50),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
            }
        )
    )


def make_bpe(directory: Path, vocab: int = 512, extra: tuple[str, ...] = ()) -> None:
    """Write a byte-level BPE tokenizer.json of exactly `vocab` tokens, `extra` being the last."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += [f"word{i}" for i in range(vocab - len(tokens) - len(extra))] + list(extra)
    tok = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>")
    )
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )


def make_mixture(directory: Path, never: dict[int, list[int]], first: dict[int, list[int]]) -> Path:
    """Write a Mixtral of 8 experts a layer, two for each token, with tokenizer.model.

    never: {layer: experts that no token goes to}. first: {layer: experts that get the first token
    of each window (BOS) and no other}.
    """
    import torch
    from safetensors.torch import load_file, save_file

    make_sentencepiece(make_llama(directory, experts=8))
    tensors = load_file(directory / "model.safetensors")
    # What a router sees: 1 in column 0 for every token, 1 in column 1 for BOS alone.
    embeddings = tensors["model.embed_tokens.weight"]
    embeddings[:, :2] = torch.tensor([1.0, 0.0])
    embeddings[1, 1] = 1.0
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "w2.weight")):
            tensor *= 0.01
        elif name.endswith("block_sparse_moe.gate.weight"):
            layer = int(name.split(".")[2])
            tensor *= 10
            tensor[:, :2] = 0
            tensor[never.get(layer, []) + first.get(layer, []), 0] = -10
            tensor[first.get(layer, []), 1] = 30
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
