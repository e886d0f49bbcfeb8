"""Check a mixture of experts: its models before, and what mergekit-moe made of them.

With --output, every tensor must be there, be finite, and have the shape that follows from the base
model and the number of experts.
"""

import argparse
import json
from pathlib import Path

import yaml

from count_parameters import parameters
from lib.errors import UserError, program
from lib.formats import moe_architectures
from lib.formats.json_file import read_json
from lib.formats.model_files import model_files
from lib.formats.moe_references import moe_references
from lib.formats.weights import read_weights
from lib.stages.moe import fault
from merge import check_output

# As mergekit warns: the condition number of the matrix of a layer's gates.
ALIKE = 5.0


def check_sources(moe: dict, allow_pickle: bool) -> None:
    """Raise UserError unless all models are whole, and fit together.

    moe: the configuration, models as paths. allow_pickle: take .bin weights.
    """
    configs = []
    for reference in moe_references(moe):
        directory = Path(reference.parts[0])
        model_files(directory, allow_pickle)
        configs.append(read_json(directory / "config.json"))
    if wrong := fault(moe, configs, in_llama_cpp=False):
        raise UserError(wrong)


def check_tensors(moe: dict, output: Path) -> None:
    """Raise UserError unless the mixture has the tensors that follow from its configuration."""
    base = Path(moe_references(moe)[0].parts[0])
    made, like = read_weights(output).tensors, read_weights(base)
    if not like.tensors:
        return  # pickled
    kind = moe_architectures.choose(moe, [read_json(base / "config.json")["model_type"]])
    wanted = dict(moe_architectures.tensors_of(moe, kind, like.tensors))
    for name in sorted(wanted.keys() | made.keys()):
        if made.get(name) != wanted.get(name):
            found = f"is {made[name]}" if name in made else "is missing"
            said = f"{wanted[name]} by its models" if name in wanted else "no model has it"
            raise UserError(f"the mixture's tensor {name} {found}, {said}")


def alike(output: Path) -> list[int]:
    """The layers whose gates are nearly the same for several experts."""
    import torch
    from safetensors import safe_open

    found = []
    for file in (path for path in model_files(output) if path.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if not name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight")):
                    continue
                if torch.linalg.cond(tensors.get_tensor(name).float()) > ALIKE:
                    found.append(int(name.split(".layers.")[1].split(".")[0]))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="mergekit-moe's YAML, models as ./directories"
    )
    parser.add_argument("--names", type=Path, help="JSON {path: its name in messages}")
    parser.add_argument("--allow-pickle", action="store_true", help="accept .bin weights")
    parser.add_argument("--output", type=Path, help="the mixture's directory")
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write: {parameters, experts, alike}, `alike` being the layers whose gates "
        "are so near to each other that some experts will hardly be used",
    )
    args = parser.parse_args()
    moe = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    names = json.loads(args.names.read_text(encoding="utf-8")) if args.names else {}
    try:
        if args.output is None:
            check_sources(moe, args.allow_pickle)
            return
        check_tensors(moe, args.output)  # whose reader tells of a file that was cut off
        check_output(args.output)
    except UserError as error:
        message = str(error)
        for path in sorted(names, key=len, reverse=True):
            message = message.replace(path, names[path]).replace(str(Path(path)), names[path])
        raise UserError(message) from None
    near = alike(args.output)
    if near:
        print(f"In {len(near)} layers the gates are nearly alike: the prompts may be too similar.")
    found = {"parameters": parameters(args.output), "experts": len(moe["experts"]), "alike": near}
    print(f"{args.output}: {found}")
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
