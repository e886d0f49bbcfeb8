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


def make_sentencepiece(directory: Path, vocab: int = 512, extra: tuple[str, ...] = ()) -> None:
    """Train a tokenizer.model as Llama's (BPE with byte fallback), which the converter takes.

    extra: tokens that it has besides.
    """
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 50),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=list(extra),
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


def make_vision(directory: Path, *, seed: int = 0) -> Path:
    """Write an Idefics3, which SmolVLM is: the Llama of `make_llama`, a vision tower, a projector.

    The tower sees 4 by 4 patches, the projector makes one token of 2 by 2 of them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    symbols = ("\n\n", "<fake_token_around_image>", "<global-img>")
    make_sentencepiece(make_llama(directory, seed=seed), extra=symbols)
    text = json.loads((directory / "config.json").read_text())
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "text_config": text | {"architectures": ["VLlama3ForCausalLM"]},
        "vision_config": vision | {"model_type": "idefics3_vision"},
        "scale_factor": 2,
        "image_token_id": 511,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    half = [0.5, 0.5, 0.5]
    processor = {"image_mean": half, "image_std": half, "size": {"longest_edge": 112}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    of_text = load_file(directory / "model.safetensors")
    tensors = {name.replace("model.", "model.text_model."): t for name, t in of_text.items()}
    tower, draw = "model.vision_model.", torch.Generator().manual_seed(seed)
    shapes = {
        f"{tower}embeddings.patch_embedding.weight": (64, 3, 14, 14),
        f"{tower}embeddings.patch_embedding.bias": (64,),
        f"{tower}embeddings.position_embedding.weight": (16, 64),
        f"{tower}post_layernorm.weight": (64,),
        f"{tower}post_layernorm.bias": (64,),
        "model.connector.modality_projection.proj.weight": (256, 256),
    }
    layer = {f"self_attn.{name}_proj": (64, 64) for name in ("q", "k", "v", "out")}
    layer |= {
        "layer_norm1": (64,),
        "layer_norm2": (64,),
        "mlp.fc1": (128, 64),
        "mlp.fc2": (64, 128),
    }
    for number in range(2):
        for name, shape in layer.items():
            shapes[f"{tower}encoder.layers.{number}.{name}.weight"] = shape
            shapes[f"{tower}encoder.layers.{number}.{name}.bias"] = shape[:1]
    for name, shape in shapes.items():
        tensor = 0.05 * torch.randn(shape, generator=draw)
        tensors[name] = (tensor + ("norm" in name and "weight" in name)).to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def make_adapter(
    directory: Path, *, seed: int = 0, rank: int = 4, hidden: int = 256, **more: object
) -> Path:
    """Write a LoRA adapter of `make_llama`'s model, as peft saves one; its B is not zero.

    more: further keys of its config.
    """
    import torch
    from safetensors.torch import save_file

    draw, tensors = torch.Generator().manual_seed(seed), {}
    for number in range(2):
        for name in ("q_proj", "o_proj"):
            here = f"base_model.model.model.layers.{number}.self_attn.{name}"
            for part, shape in (("A", (rank, hidden)), ("B", (hidden, rank))):
                tensors[f"{here}.lora_{part}.weight"] = 0.3 * torch.randn(shape, generator=draw)
    config = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": rank}
    config |= {"lora_alpha": 2 * rank, "target_modules": ["q_proj", "o_proj"], "bias": "none"}
    config |= more
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def make_trained_bpe(directory: Path, vocab: int = 512) -> None:
    """Train a byte-level BPE on TEXT, with merges; write its tokenizer.json of `vocab` tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(TEXT * 50, trainer)
    tok.add_tokens([f"word{number}" for number in range(vocab - tok.get_vocab_size())])
    tok.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def make_mtp(directory: Path, *, seed: int = 0) -> Path:
    """Write a Qwen3.5 of two layers, and one for multi-token prediction that guesses right.

    No layer changes anything: the model writes what the last token alone makes probable, and so
    does its last layer, which is told that token.
    """
    import torch
    from safetensors.torch import save_file

    hidden, ffn, vocab, heads, width = 256, 512, 512, 2, 64
    config = {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": 2,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "layer_types": ["linear_attention", "full_attention"],
        "full_attention_interval": 2,
        "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "vocab_size": vocab,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }
    shapes = {f"{name}.weight": (vocab, hidden) for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = (hidden,)
    full = {"q": (1024, hidden), "k": (256, hidden), "v": (256, hidden), "o": (hidden, 512)}
    attention = {f"self_attn.{name}_proj.weight": shape for name, shape in full.items()}
    attention |= {f"self_attn.{name}_norm.weight": (256,) for name in "qk"}
    linear = {
        "A_log": (heads,),
        "dt_bias": (heads,),
        "conv1d.weight": (3 * heads * width, 1, 4),
        "in_proj_a.weight": (heads, hidden),
        "in_proj_b.weight": (heads, hidden),
        "in_proj_qkv.weight": (3 * heads * width, hidden),
        "in_proj_z.weight": (heads * width, hidden),
        "norm.weight": (width,),
        "out_proj.weight": (hidden, heads * width),
    }
    rest = {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)}
    rest |= {"mlp.down_proj.weight": (hidden, ffn), "input_layernorm.weight": (hidden,)}
    rest["post_attention_layernorm.weight"] = (hidden,)
    layers = {
        "model.layers.0.": {f"linear_attn.{name}": shape for name, shape in linear.items()} | rest,
        "model.layers.1.": attention | rest,
        "mtp.layers.0.": attention | rest,
    }
    for before, layer in layers.items():
        shapes |= {before + name: shape for name, shape in layer.items()}
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        shapes[f"mtp.{name}.weight"] = (hidden,)
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(shapes.items()):
        tensor = 0.05 * torch.randn(shape, generator=draw)
        if "norm" in name:  # Qwen3.5 adds 1, but not there
            tensor = torch.full(shape, float("linear_attn" in name))
        elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            tensor *= 0
        tensors[name] = tensor.to(torch.bfloat16)
    tensors["mtp.fc.weight"] = torch.eye(hidden, 2 * hidden, dtype=torch.bfloat16)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    make_trained_bpe(directory)
    return directory
