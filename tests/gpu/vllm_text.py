"""Load model directories with vLLM, each in a process of its own, and let it write 32 tokens.

    python tests/gpu/vllm_text.py DIRECTORY...

Prints for each the quantization that vLLM sees, the kernels that it takes, and its text; for one
that fails the end of what vLLM said. The last line is `failed: N`. Needs a GPU with a fifth of its
memory free, and vLLM; nothing is downloaded.
"""

import json
import os
import subprocess
import sys

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # errors come from this process
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it would compile its kernels
}
PROMPTS = ["The", "In the beginning"]
MARK = "@@ "


def write(directory: str) -> None:
    """In a process of its own: print a line of MARK and JSON."""
    import vllm

    engine = vllm.LLM(
        model=directory, dtype="bfloat16", enforce_eager=True, max_model_len=512, seed=0,
        gpu_memory_utilization=0.2,
    )  # fmt: skip
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=32)
    texts = [each.outputs[0].text for each in engine.generate(PROMPTS, greedy, use_tqdm=False)]
    quantization = engine.llm_engine.vllm_config.model_config.quantization
    print(MARK + json.dumps([vllm.__version__, quantization, texts]), flush=True)


def report(directory: str) -> bool:
    """Whether vLLM has written a text; prints it, or what it said."""
    command = [sys.executable, __file__, "--one", directory]
    environment = SETTINGS | os.environ
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = done.stdout.splitlines()
    found = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if not found:
        print(f"{directory}: FAILED", *lines[-40:], sep="\n    ", flush=True)
        return False
    version, quantization, texts = found[0]
    print(f"{directory}: vLLM {version}, quantization {quantization}")
    kernels = (line.split("] ", 1)[-1] for line in lines if "LinearKernel" in line)
    for line in dict.fromkeys(kernels):
        print(f"    {line[:150]}")
    for prompt, text in zip(PROMPTS, texts, strict=True):
        print(f"    {prompt!r} goes on as {text!r}", flush=True)
    return all(texts)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        write(sys.argv[2])
    else:
        print("failed:", [report(directory) for directory in sys.argv[1:]].count(False))
