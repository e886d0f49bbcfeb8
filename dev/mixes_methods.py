"""Compare ways to score what quantizing a tensor costs, by the mixes that are chosen with them.

    python dev/mixes_methods.py --gguf X-BF16.gguf --imatrix X.dat --sensitivity sensitivity.json \\
        --model DIR --text calibration.txt --evaluation evaluation.txt --tools DIR --work DIR

Prints a Markdown table: for each method and preset, by how much the mean KLD of the mix of the
preset's size is below the preset's, on the evaluation text; then how long Fisher took. The methods:

    measured   sensitivity.json: the KLD of one tensor or group, in proportion to error and bias
    by error   the same in proportion to the error alone, without what its bias costs
    fisher     half the mean square of <gradient of log p(y|x), W' - W>, y drawn from the model, a
               token; for Llamas, in PyTorch on the CPU or, where there is one, on a GPU
    error      the error alone, times the number of weights

Nothing is quantized for a mix: each tensor of each type is a part of its own (lib/mixes/parts.py).
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from mixes import SIZES

from lib.errors import program
from lib.formats.gguf_file import GgufFile, Tensor, read_gguf
from lib.formats.imatrix_file import read_imatrix
from lib.formats.json_file import read_json
from lib.mixes.candidates import has_data
from lib.mixes.choice import Choices, best_within, total
from lib.mixes.measuring import CONTEXT, Bench, Machine, halves
from lib.mixes.parts import Parts
from lib.mixes.quantizing import quantize_pure
from lib.mixes.sensitivity import own, read
from mix import presets

IN_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def parameter(name: str) -> str:
    """The name in transformers of a Llama's tensor in GGUF."""
    if name in ("token_embd.weight", "output.weight"):
        return "model.embed_tokens.weight" if name.startswith("token") else "lm_head.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{IN_LAYER[kind]}.weight"


def weights(file: GgufFile, tensor: Tensor, heads: int) -> np.ndarray:
    """A tensor as transformers has it: float32 (rows, width).

    heads: of rows that the converter has put in another order; 0: of none.
    """
    data = np.memmap(file.path, np.uint8, "r", tensor.offset, tensor.size)
    rows = tensor.elements // tensor.shape[0]
    found = dequantize(data.reshape(rows, -1), GGMLQuantizationType(tensor.type))
    if heads:
        found = found.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(found.reshape(rows, -1), dtype=np.float32)


def fisher(
    model: Path, base: GgufFile, made: list[GgufFile], text: str, samples: int
) -> dict[str, dict[str, float]]:
    """{tensor: {type: damage in nats a token}}, from as many texts drawn from the model.

    made: the quantized files. text: of which the beginnings are taken.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    heads = {"attn_q": net.config.num_attention_heads, "attn_k": net.config.num_key_value_heads}
    known, before = dict(net.named_parameters()), {t.name: t for t in base.tensors}
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    for file in made:
        for tensor in file.tensors:
            kinds = deltas.setdefault(tensor.name, {})
            kind = tensor.type_name.lower()
            if len(tensor.shape) < 2 or kind in kinds:
                continue
            order = next((n for part, n in heads.items() if f".{part}." in tensor.name), 0)
            old = weights(base, before[tensor.name], order)
            same = known[parameter(tensor.name)].detach().cpu().numpy()
            assert np.abs(old - same).max() < 1e-6, f"{tensor.name} is in another order"
            change = torch.from_numpy(weights(file, tensor, order) - old)
            kinds[kind] = change.to(torch.bfloat16).to(device)
    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False).input_ids
    windows = [ids[at : at + CONTEXT] for at in range(0, len(ids) - CONTEXT, CONTEXT)][:8]
    scored = slice(CONTEXT // 2, CONTEXT - 1)
    squares: dict[str, dict[str, float]] = {n: dict.fromkeys(k, 0.0) for n, k in deltas.items()}
    for number in range(samples):
        window = torch.tensor(windows[number % len(windows)], device=device)[None]
        window[0, 0] = net.config.bos_token_id
        net.zero_grad()
        logits = net(window).logits[0, scored]
        drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        for name, kinds in deltas.items():
            for kind, change in kinds.items():
                inner = (known[parameter(name)].grad * change).sum().item()
                squares[name][kind] += inner**2 / (2 * samples * logits.shape[0])
    return squares


def scored_by(known: Choices, damages: Mapping[str, Mapping[str, float]]) -> Choices:
    """The same choices with other damages."""
    return {
        name: {kind: (size, damages[name][kind]) for kind, (size, _) in kinds.items()}
        for name, kinds in known.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, required=True, help="the unquantized GGUF file")
    parser.add_argument("--imatrix", type=Path, required=True, help="its importance matrix")
    parser.add_argument("--sensitivity", type=Path, required=True, help="its sensitivity.json")
    parser.add_argument("--model", type=Path, required=True, help="the model's directory, a Llama")
    parser.add_argument("--text", type=Path, required=True, help="calibration text, UTF-8")
    parser.add_argument("--evaluation", type=Path, required=True, help="another text, UTF-8")
    parser.add_argument("--chunks", type=int, default=20, help="of the other text (default: 20)")
    parser.add_argument("--samples", type=int, default=64, help="texts for Fisher (default: 64)")
    parser.add_argument("--tools", type=Path, required=True, help="directory of llama.cpp's tools")
    parser.add_argument("--threads", type=int, default=2, help="threads of the tools (default: 2)")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on a GPU (default: 0)")
    parser.add_argument("--work", type=Path, required=True, help="directory to work in")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    base, known, found = read_gguf(args.gguf), read(args.sensitivity), read_json(args.sensitivity)
    matrix = read_imatrix(args.imatrix).entries
    machine = Machine(args.tools, args.threads, args.gpu_layers)
    parts = Parts(args.work / "parts", base)
    parts.add(base)
    made, probed = [], {}
    for kind in found["pure"]:
        file = args.work / f"{kind}.gguf"
        spared = [name for name in known.choices if not has_data(name, kind, matrix)]
        made.append(quantize_pure(machine, base, args.imatrix, kind, spared, file))
        parts.add(made[-1])
        if kind == found["probe"]:
            probed = {tensor.name: tensor.type_name.lower() for tensor in made[-1].tensors}
    halves(args.text, args.work / "text.txt", args.work / "rest.txt")
    text = (args.work / "text.txt").read_text(encoding="utf-8")
    sizes = {tensor.name: tensor.elements for tensor in base.tensors}
    alone = {
        name: {kind: error * sizes[name] for kind, (_, error, _, _) in kinds.items()}
        for name, kinds in found["tensors"].items()
    }
    by_error = {}
    for group in found["groups"].values():
        entries = {name: found["tensors"][name] for name in group["tensors"]}
        whole = sum(kinds[probed[name]][1] for name, kinds in entries.items())
        cost = own(group["kld"], group["rounding"]) / whole
        for name, kinds in entries.items():
            by_error[name] = {kind: error * cost for kind, (_, error, _, _) in kinds.items()}
    began = time.monotonic()
    second_order = fisher(args.model, base, made, text, args.samples)
    seconds = time.monotonic() - began
    methods = {
        "measured": known.choices,
        "by error": scored_by(known.choices, by_error),
        "fisher": scored_by(known.choices, second_order),
        "error": scored_by(known.choices, alone),
    }
    bench = Bench(machine, args.gguf, args.evaluation, args.chunks, args.work / "base.kld")
    theirs = {name: mix for name, mix in presets(base, known).items() if name in SIZES}
    klds = {name: bench.kld(parts.link(mix, args.work / "mix")) for name, mix in theirs.items()}
    lines = [f"| method | {' | '.join(theirs)} |", f"| --- |{' --: |' * len(theirs)}"]
    for method, choices in methods.items():
        less = []
        for name, mix in theirs.items():
            ours = best_within(choices, total(choices, mix)[0])
            kld = bench.kld(parts.link(ours, args.work / "mix"))
            less.append(f"{100 * (1 - kld / klds[name]):.0f}%")
        lines.append(f"| {method} | {' | '.join(less)} |")
    print("\n".join(lines))
    print(f"\nFisher: {args.samples} texts, {seconds:.0f} s")


if __name__ == "__main__":
    program(main)
