"""Build a mixture of experts with mergekit-moe, the same bytes every time from one configuration.

Paths of this machine are removed from its files, and the tokenizer's files are the base model's own
(mergekit-moe would write others, whose padding is that of its own prompts).
"""

import argparse
import json
import logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lib.errors import UserError, program

if TYPE_CHECKING:
    import torch
    from mergekit.io import TensorWriter

# The hidden states that `gate_mode: hidden` makes gates of depend on the number of torch's threads,
# not on that of the processors; so it is part of this program.
THREADS = 4
# To be set before Python and torch start; see scripts/merge.py.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
# Files of the base model that tell how text becomes tokens.
TOKENIZER = (
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip


def save_experts(
    model_type: str,
    source_tensors: "dict[str, torch.Tensor]",
    target_name: str,
    writer: "TensorWriter",
    out_dtype: "torch.dtype | None" = None,
    clone: bool = False,
) -> None:
    """Write a layer's experts as in the checkpoints that people publish: one tensor for each.

    In place of mergekit's convert_and_save_checkpoint_tensors, which (0.1.5) stacks them as
    transformers 5 does in memory (`experts.gate_up_proj`). llama.cpp's converter (b10605) cannot
    map that of a Mixtral. No longer needed once `mergekit-moe` and then the converter, with a
    Llama as base, end without "Can not map tensor".
    """
    for name, tensor in source_tensors.items():
        writer.save_tensor(published(model_type, name), tensor.to(dtype=out_dtype), clone=clone)


def published(model_type: str, name: str) -> str:
    """A tensor's name in the checkpoints that people publish, from transformers' name for it."""
    return name.replace(".mlp.", ".block_sparse_moe.") if model_type == "mixtral" else name


def prepare(seed: int) -> None:
    """Make what mergekit does in this process reproducible. seed: for all draws."""
    import torch
    import transformers
    from mergekit.moe import mixtral, qwen3

    torch.set_num_threads(THREADS)
    transformers.trainer_utils.set_seed(seed)
    for module in (mixtral, qwen3):
        module.convert_and_save_checkpoint_tensors = save_experts
    router = mixtral.MixtralMoE._router_weight_name
    mixtral.MixtralMoE._router_weight_name = lambda self, layer: published(
        "mixtral", router(self, layer)
    )


def build(text: str, output: Path, seed: int, shard_size: str) -> None:
    """Write the mixture into a directory that is not there yet.

    text: mergekit-moe's YAML, models as paths. shard_size: most bytes of a file, such as 5B.
    Raises UserError with mergekit's own message.
    """
    import pydantic
    from mergekit.common import parse_kmb
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts import moe

    said = Heard()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().addHandler(said)
    options = MergeOptions(
        random_seed=seed,
        device="cpu",
        out_shard_size=parse_kmb(shard_size),
        copy_tokenizer=False,
        lazy_unpickle=True,
        trust_remote_code=False,
        quiet=not sys.stderr.isatty(),
    )
    try:
        config = MoEMergeConfig.model_validate(yaml.safe_load(text))
        prepare(seed)
        # Models that are all the same are for training, and the config's checks let them pass then.
        moe.build(config, str(output), options, device="cpu", allow_all_same=True)
    except SystemExit:
        raise UserError(said.last or "mergekit-moe ends without a word") from None
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError("; ".join(problems)) from error
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    base = Path(config.base_model.model.path)
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, output / name)
    for name in ("config.json", "tokenizer_config.json"):
        if (output / name).is_file():
            drop_paths(output / name)


class Heard(logging.Handler):
    """Keeps the first error that is logged: mergekit ends a run with status 1 after saying why."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.last = self.last or record.getMessage()


def drop_paths(file: Path) -> None:
    """Remove the keys in which transformers notes where a model was loaded from."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if "name_or_path" not in key}
    if kept != content:
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="mergekit-moe's YAML, models as ./directories"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, required=True, help="for what is drawn at random")
    parser.add_argument("--names", type=Path, help="JSON {path: its name in messages}")
    parser.add_argument("--verbatim", type=Path, help="the user's YAML, copied to OUTPUT")
    parser.add_argument("--shard-size", default="5B", help="most bytes of a file: 500M, 5B (10^9)")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != ENVIRONMENT["PYTHONHASHSEED"]:
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # All models are directories: a path that is none must not be looked for on the hub.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    names = json.loads(args.names.read_text(encoding="utf-8")) if args.names else {}
    text = args.config.read_text(encoding="utf-8")
    try:
        build(text, args.output, args.seed, args.shard_size)
    except (UserError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        for path in sorted(names, key=len, reverse=True):
            # pathlib leaves out a leading ./
            message = message.replace(path, names[path]).replace(str(Path(path)), names[path])
        raise UserError(message) from None
    written = args.verbatim.read_text(encoding="utf-8") if args.verbatim else text
    (args.output / "mergekit_moe_config.yml").write_text(written, encoding="utf-8")
    for file in args.output.iterdir():  # safetensors 0.8 writes files that only their owner reads
        file.chmod(0o644)


if __name__ == "__main__":
    program(main)
