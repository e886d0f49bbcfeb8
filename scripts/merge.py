"""Merge models with mergekit, so that the same configuration gives the same bytes every time.

The result is checked: every tensor must be finite and have the shape that config.json says. Paths
of this machine are removed from its files. mergekit's model card is left out: the order of its
lines is random, and another step writes the card.
"""

import argparse
import difflib
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from lib.errors import UserError, program
from lib.formats.model_files import model_files

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

# The bytes that slerp, nuslerp and the methods that draw make depend on the number of torch's
# threads (not on that of the processors; seen in mergekit 0.1.5), so it is part of this program.
THREADS = 4
# To be set before Python and torch start. Sets of strings decide orders in mergekit; OpenMP's
# waiting threads would take the processors from those at work when there are fewer than THREADS.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def prepare(seed: int) -> None:
    """Make merges in this process reproducible; call it before the first. seed: for all draws."""
    import torch
    import transformers
    from mergekit.config import MergeConfiguration

    torch.set_num_threads(THREADS)
    transformers.trainer_utils.set_seed(seed)
    # mergekit 0.1.5 makes a set of the models and takes the configuration and the tokenizer of
    # whichever comes first, if there is no base_model. Not needed once that is a list there.
    MergeConfiguration.referenced_models = _referenced_models
    # tokenizers returns a vocabulary in another order in each process, and mergekit numbers the
    # tokens that it adds for `tokenizer_source: union` in that order.
    fast = transformers.PreTrainedTokenizerFast
    if not hasattr(fast, "_unsorted_get_vocab"):
        fast._unsorted_get_vocab = fast.get_vocab
        fast.get_vocab = lambda self: dict(
            sorted(self._unsorted_get_vocab().items(), key=lambda item: item[1])
        )


def _referenced_models(config: "MergeConfiguration") -> list:
    """The models that are merged: the base first, the others in the order of the configuration."""
    found = [config.base_model] if config.base_model else []
    parts = [config, *(config.modules or {}).values()]
    for part in parts:
        found += [entry.model for entry in part.models or []]
        found += [source.model for piece in part.slices or [] for source in piece.sources]
    return list(dict.fromkeys(found))


def read_config(text: str) -> "MergeConfiguration":
    """The configuration as mergekit reads it. text: YAML.

    Raises UserError for one that mergekit rejects, and for a parameter that no method has.
    """
    import pydantic
    from mergekit import merge_methods
    from mergekit.config import MergeConfiguration

    raw = yaml.safe_load(text)
    try:
        config = MergeConfiguration.model_validate(raw)
        method = merge_methods.get(config.merge_method)
    except pydantic.ValidationError as error:
        problems = [
            ".".join(str(part) for part in one["loc"]) + ": " + one["msg"] for one in error.errors()
        ]
        raise UserError("; ".join(problems)) from error
    except RuntimeError as error:
        raise UserError(str(error)) from error
    # mergekit ignores a parameter that the method does not have, so a typing error would go unseen.
    # Parameters of other methods are common in published configurations.
    known = {p.name for p in method.spec.parameters}
    elsewhere = {p.name for m in merge_methods.registered_methods() for p in m.spec.parameters}
    for where, name in _parameters(raw):
        if name in known:
            continue
        if name in elsewhere:
            print(f"note: {where}.{name} has no effect: {config.merge_method} has no {name}")
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
        )
        raise UserError(f"{where}.{name}: {config.merge_method} has no such parameter; {hint}")
    return config


def _parameters(part: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key path, name) of every parameter in a configuration."""
    if isinstance(part, dict):
        for key, value in part.items():
            here = f"{where}.{key}" if where else str(key)
            if key == "parameters" and isinstance(value, dict):
                yield from ((here, name) for name in value)
            else:
                yield from _parameters(value, here)
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from _parameters(value, f"{where}[{index}]")


def check_sources(config: "MergeConfiguration", allow_pickle: bool) -> None:
    """Raises UserError unless every model that is merged is a whole model directory.

    It does too if the tokenizer's source is no directory, or the chat template cannot be used.
    """
    from mergekit.merge import _set_chat_template

    for reference in config.referenced_models():
        for path in filter(None, (reference.model, reference.lora)):
            model_files(Path(path.path), allow_pickle)
    tokenizer = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    if tokenizer not in (None, "base", "union") and not Path(tokenizer.model.path).is_dir():
        raise UserError(f"{tokenizer.model.path}, the tokenizer's source: no such directory")
    if config.chat_template not in (None, "auto"):
        # mergekit itself checks it when all tensors are written, and may then only log the fault.
        try:
            _set_chat_template(SimpleNamespace(), config)
        except RuntimeError as error:
            raise UserError(str(error)) from error


def merge(config: "MergeConfiguration", output: Path, options: "MergeOptions") -> None:
    """Run mergekit, add the files that it leaves out and remove paths of this machine.

    output: a directory that is empty or not there. Raises UserError with mergekit's own message.
    """
    from mergekit.merge import run_merge

    try:
        run_merge(config, str(output), options)
    except Exception as error:
        traceback.print_exc()
        raise UserError(_one_line(error)) from error
    donor = Path((config.base_model or config.referenced_models()[0]).model.path)
    # mergekit only logs that it could not write a tokenizer.
    if _any(donor, TOKENIZERS) and not _any(output, TOKENIZERS):
        raise UserError(f"mergekit could not write the tokenizer of {donor}")
    # With a chat_template it leaves out files that the donor's vocabulary goes with all the same.
    if not (config.tokenizer_source or config.tokenizer):
        for name in ("tokenizer.model", "generation_config.json"):
            if (donor / name).is_file() and not (output / name).exists():
                shutil.copyfile(donor / name, output / name)
    for name in ("config.json", "tokenizer_config.json"):
        if (output / name).is_file():
            _drop_paths(output / name)


def _any(directory: Path, names: tuple[str, ...]) -> bool:
    return any((directory / name).is_file() for name in names)


def _drop_paths(file: Path) -> None:
    """Remove the keys in which transformers notes where a model was loaded from."""
    content = json.loads(file.read_text(encoding="utf-8"))
    noted = [key for key in ("_name_or_path", "name_or_path") if key in content]
    if noted:
        for key in noted:
            del content[key]
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _one_line(error: BaseException) -> str:
    """The error in one line; with its type if its text alone says nothing, as of a KeyError."""
    text = " ".join(str(error).split())
    return (
        text if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {text}"
    )


def check_output(output: Path) -> int:
    """Check a merge and return its number of tensors.

    Raises UserError, which names the tensor or the file, if one is missing, is not finite or has
    another shape than config.json says.
    """
    from safetensors import safe_open

    shapes, tied = _expected_shapes(output)
    index = output / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    found = set()
    for file in (f for f in model_files(output) if f.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in sorted(names):
                tensor = tensors.get_tensor(name)
                if not _is_finite(tensor):
                    raise UserError(f"NaN or Inf in the merged tensor {name}")
                wanted = shapes.get(name, tensor.shape)
                if tensor.shape != wanted:
                    raise UserError(
                        f"the merged tensor {name} is {list(tensor.shape)}, "
                        f"{list(wanted)} by config.json"
                    )
        lost = sorted(n for n, shard in listed.items() if shard == file.name and n not in names)
        if lost:
            raise UserError(f"{file.name}: it lacks {lost[0]}, which the index says it has")
        found |= names
    if not found:
        raise UserError("mergekit wrote no tensors")
    # Where checkpoint and transformers agree on names, all that config.json asks for must be there.
    missing = sorted(set(shapes) - found - tied) if found <= set(shapes) else []
    if missing:
        raise UserError(f"the merge lacks the tensor {missing[0]}, which config.json asks for")
    return len(found)


def _is_finite(tensor: Any) -> bool:
    """Whether all of a tensor's values are finite.

    By its least and its greatest value, which are NaN if any is: an eighth of isfinite's time.
    """
    import torch

    if not tensor.numel():
        return True
    ends = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor)
    return bool(torch.isfinite(torch.stack(ends)).all())


def _expected_shapes(model: Path) -> tuple[dict[str, Any], set[str]]:
    """({tensor: shape} of the model that config.json describes, the tensors tied to others).

    Both are empty for an architecture that transformers does not know.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            empty = getattr(transformers, config.architectures[0])(config)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ImportError) as error:
        print(f"note: shapes are not checked against config.json: {_one_line(error)}")
        return {}, set()
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    return shapes, set(empty.all_tied_weights_keys)


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="mergekit YAML, models as ./paths of directories"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, required=True, help="for methods that draw numbers")
    parser.add_argument("--names", type=Path, help="JSON {path: its name in messages}")
    parser.add_argument("--verbatim", type=Path, help="the user's YAML, copied to OUTPUT")
    parser.add_argument("--cuda", action="store_true", help="compute on a GPU")
    parser.add_argument(
        "--low-cpu-memory", action="store_true", help="mergekit's: keep results on the GPU"
    )
    parser.add_argument(
        "--lazy-unpickle", action="store_true", help="mergekit's: read pickles piece by piece"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="accept .bin weights")
    parser.add_argument("--shard-size", default="5B", help="most bytes of a file: 500M, 5B (10^9)")
    return parser


def main() -> None:
    args = command_line().parse_args()
    if os.environ.get("PYTHONHASHSEED") != ENVIRONMENT["PYTHONHASHSEED"]:
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # All models are directories: a path that is none must not be looked for on the hub.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    names = json.loads(args.names.read_text(encoding="utf-8")) if args.names else {}
    try:
        count = run(args)
    except (UserError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        for path in sorted(names, key=len, reverse=True):
            # pathlib leaves out a leading ./
            message = message.replace(path, names[path]).replace(str(Path(path)), names[path])
        raise UserError(message) from None
    print(f"{args.output}: {count} tensors, all finite")


def run(args: argparse.Namespace) -> int:
    """Do the whole merge and return the number of tensors written. Raises UserError, YAMLError."""
    text = args.config.read_text(encoding="utf-8")

    import torch
    from mergekit.common import parse_kmb
    from mergekit.options import MergeOptions

    logging.basicConfig(level=logging.WARNING)
    prepare(args.seed)
    if args.cuda and not torch.cuda.is_available():
        raise UserError("--cuda: torch sees no GPU here")
    config = read_config(text)
    check_sources(config, args.allow_pickle)
    adapters = args.output / "merged-adapters"
    options = MergeOptions(
        random_seed=args.seed,
        cuda=args.cuda,
        low_cpu_memory=args.low_cpu_memory,
        lazy_unpickle=args.lazy_unpickle,
        out_shard_size=parse_kmb(args.shard_size),
        lora_merge_cache=str(adapters),
        trust_remote_code=False,
        write_model_card=False,
        quiet=not sys.stderr.isatty(),
    )
    merge(config, args.output, options)
    shutil.rmtree(adapters, ignore_errors=True)
    written = args.verbatim.read_text(encoding="utf-8") if args.verbatim else text
    (args.output / "mergekit_config.yml").write_text(written, encoding="utf-8")
    for file in args.output.iterdir():  # safetensors 0.8 writes files that only their owner reads
        file.chmod(0o644)
    return check_output(args.output)


if __name__ == "__main__":
    program(main)
