"""Which mixture mergekit-moe (0.1.5) makes of which models, its config.json and its tensors.

mergekit is not imported, because that takes seconds. tests/test_moe.py keeps this in step with what
it makes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LLAMAS = ("llama", "mistral")
GATE_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
DRAWN = GATE_MODES[-2:]
# The most experts that llama.cpp (b10605) allocates for: LLAMA_MAX_EXPERTS.
MOST_EXPERTS = 1024
SIGNS = ("positive", "negative")  # of prompts


@dataclass(frozen=True)
class Output:
    """An architecture of mergekit-moe.

    name: mergekit's. architecture, model_type: as in config.json. count: its key there for the
    number of experts. layer: the part of a layer's tensor names that has the experts. parts: the
    names of an expert's matrices, by those of a dense model. normalised: whether llama.cpp (b10605)
    scales the weights of a token's experts so that their sum is 1, which mergekit's config.json
    asks for.
    """

    name: str
    architecture: str
    model_type: str
    count: str
    layer: str
    parts: Mapping[str, str]
    normalised: bool


_SAME = {part: part for part in ("gate_proj", "up_proj", "down_proj")}
MIXTRAL = Output(
    "Mixtral", "MixtralForCausalLM", "mixtral", "num_local_experts", "block_sparse_moe",
    {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}, True,
)  # fmt: skip
DEEPSEEK = Output(
    "DeepSeek MoE", "DeepseekForCausalLM", "deepseek", "n_routed_experts", "mlp", _SAME, False
)
QWEN = Output("Qwen MoE", "Qwen2MoeForCausalLM", "qwen2_moe", "num_experts", "mlp", _SAME, False)
QWEN3 = Output("Qwen3 MoE", "Qwen3MoeForCausalLM", "qwen3_moe", "num_experts", "mlp", _SAME, True)
OUTPUTS = (MIXTRAL, DEEPSEEK, QWEN, QWEN3)  # in mergekit's order


def draws(moe: Mapping[str, Any]) -> bool:
    """Whether random_seed decides something of the mixture."""
    experts = [*moe["experts"], *(moe.get("shared_experts") or [])]
    noisy = any(expert.get("noise_scale") is not None for expert in experts)
    return moe.get("gate_mode") in DRAWN or noisy


def named(architecture: str | None) -> list[Output]:
    """The architectures whose names begin as the key `architecture` says; all if it is not set."""
    wanted = (architecture or "").lower()
    return [output for output in OUTPUTS if output.name.lower().startswith(wanted)]


def choose(moe: Mapping[str, Any], kinds: Sequence[str]) -> Output:
    """The architecture that mergekit takes.

    moe: a configuration without mistakes of form. kinds: the model_type of each of its models.
    Raises ValueError, in words, if it takes none, or one that nothing here can load.
    """
    fitting = [output for output in named(moe.get("architecture")) if _takes(output, moe, kinds)]
    if not fitting:
        wanted = f" by architecture {moe['architecture']}" if moe.get("architecture") else ""
        raise ValueError(
            f"mergekit-moe makes no mixture{wanted} of {' and '.join(sorted(set(kinds)))} models "
            f"with {len(moe.get('shared_experts') or [])} shared experts. All must be of one kind: "
            "Llama or Mistral (Mixtral), Qwen3 (Qwen3 MoE), or with one shared expert that has "
            "prompts Qwen2, Llama or Mistral (Qwen MoE)"
        )
    chosen = MIXTRAL if MIXTRAL in fitting else fitting[0]
    if chosen is DEEPSEEK:
        instead = "for a Mixtral leave out architecture"
        if moe.get("shared_experts"):
            instead = "for a Qwen MoE give the shared expert prompts and set architecture: qwen"
        raise ValueError(
            "mergekit-moe makes a DeepSeek MoE of it, which transformers loads by code from the "
            f"hub alone; {instead}"
        )
    return chosen


def _takes(output: Output, moe: Mapping[str, Any], kinds: Sequence[str]) -> bool:
    shared = moe.get("shared_experts") or []
    kind = kinds[0] if len(set(kinds)) == 1 else None
    if output is MIXTRAL:
        return not shared and kind in LLAMAS
    if output is DEEPSEEK:
        prompts = [entry.get(f"{sign}_prompts") for entry in shared for sign in SIGNS]
        return len(shared) <= 1 and not any(prompts) and kind in LLAMAS
    if output is QWEN:
        gated = moe.get("gate_mode") == "random" or any(e.get("positive_prompts") for e in shared)
        return len(shared) == 1 and gated and kind in (*LLAMAS, "qwen2")
    return not shared and kind == "qwen3"


def in_llama_cpp(moe: Mapping[str, Any], output: Output) -> str | None:
    """Why llama.cpp (b10605) would run another model than was made, in words; None if it does not.

    Raised by what its graph of a Qwen MoE leaves out (norm_w in src/models/qwen2moe.cpp).
    """
    count, used = len(moe["experts"]), moe.get("experts_per_token", 2)
    if count > MOST_EXPERTS:
        return f"llama.cpp takes at most {MOST_EXPERTS} experts, and there are {count}"
    if not output.normalised and used < count:
        return (
            f"llama.cpp does not scale the weights of a token's experts to a sum of 1 in a "
            f"{output.name}, so that it would run another model where experts_per_token ({used}) "
            f"is less than the number of experts; set it to {count}, or make no GGUF of it"
        )
    return None


def config_of(moe: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the mixture, as far as checks need it; the base's if none can be made.

    base: the base model's config.json.
    """
    try:
        output = choose(moe, [str(base.get("model_type"))])
    except ValueError:
        return dict(base)
    return {
        **base,
        "architectures": [output.architecture],
        "model_type": output.model_type,
        output.count: len(moe["experts"]),
        "num_experts_per_tok": moe.get("experts_per_token", 2),
    }


def tensors_of(
    moe: Mapping[str, Any], output: Output, base: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of all tensors of the mixture. base: {name: shape} of the base model."""
    count = len(moe["experts"])
    width = base["model.embed_tokens.weight"][1]
    for name, dims in base.items():
        if ".mlp." not in name:
            yield name, dims
            continue
        before, part = name.split(".mlp.")
        matrix = part.removesuffix(".weight")
        here = f"{before}.{output.layer}"
        for expert in range(count):
            yield f"{here}.experts.{expert}.{output.parts[matrix]}.weight", dims
        if output is QWEN:
            yield f"{here}.shared_expert.{matrix}.weight", dims
        if matrix == "down_proj":
            yield f"{here}.gate.weight", (count, width)
            if output is QWEN:
                yield f"{here}.shared_expert_gate.weight", (1, width)
        if output is QWEN and matrix == "down_proj":
            for letter in "qkv":  # zeros where the base has no bias
                proj = f"{before}.self_attn.{letter}_proj"
                if f"{proj}.bias" not in base:
                    yield f"{proj}.bias", base[f"{proj}.weight"][:1]
