"""Importance matrices: computed by llama-imatrix, or a file of the user's own."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from lib.errors import UserError
from lib.formats.weights import EXPERT_COUNTS
from lib.keys.section import Choice, Flag, Number, Section, Text
from lib.keys.values import show
from lib.record.artifact import Artifact
from lib.stages.checked import Inspector, Row
from lib.stages.convert import model_of
from lib.stages.stage import Counted, Memory, Size, Sizing, Stage, TakenStage, Time

# llama-imatrix and llama-perplexity write "computing over 40 chunks", then "[1]152.3903,[2]168.42".
CHUNKS = Counted(r"\[(\d+)\]-?[\dn]", r"over (\d+) chunks")
SUFFIXES = (".dat", ".gguf")


class Imatrix(Section):
    """An importance matrix: a file of yours, or made by llama-imatrix of the unquantized model."""

    file: Text | None = Field(
        None,
        description="A matrix that you have, .dat or .gguf, in place of a computed one; no other "
        "key beside it.",
    )
    corpus: Text = Field("calibration", description="Name of the calibration text in `corpora`.")
    chunks: Number(int, 1) | None = Field(
        None, description="Number of chunks of the text to use; all if left out."
    )
    context: Number(int, 8) = Field(512, description="Tokens in a chunk.")
    format: Choice(Literal["dat", "gguf"]) = Field(
        "dat", description="File format, and the suffix of results/MODEL/imatrix.*."
    )
    process_output: Flag = Field(
        False, description="Collect data for the output tensor too (--process-output)."
    )
    parse_special: Flag = Field(
        False, description="Read special tokens in the text as such (--parse-special)."
    )
    batch_size: Number(int, 1) | None = Field(
        None, description="Logical batch, in tokens (-b); the tool's own if left out."
    )


class ComputeImatrixStage(Stage):
    """Compute an importance matrix, with llama-imatrix."""

    rule = "imatrix"
    column = "imatrix"
    # llama.cpp maps the file. The pages are cache, but every batch reads all of them: with less
    # memory than the file a run is as slow as the disk. With -ngl the pages go to the GPU once, yet
    # a site that counts mapped pages as the job's (JobAcctGatherParams without UsePss) would kill a
    # smaller request.
    memory = Memory(3000, 1.1, 0, 1.1)
    time = Time(15, 100)
    output = 0.01
    tokens = 100_000  # 200 chunks of 512
    counted = CHUNKS
    gpu = "whole"
    fixed_threads = None
    priority = 1

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """For each matrix of the layers, 4 bytes a column and 34 bytes more."""
        tensors = sizes.tensors(model_of(artifact.inputs["gguf"]))
        rows = [dims for key, dims in tensors.items() if key.startswith("blk.") and len(dims) > 1]
        floats = sum(dims[0] * (dims[2] if len(dims) > 2 else 1) for dims in rows)
        return Size(4 * floats + 34 * len(rows), "tensors") if tensors else None


class ImatrixFileStage(TakenStage):
    """Copy an importance matrix that the user has already."""

    rule = "imatrix_file"
    column = "imatrix"


STAGES = (ComputeImatrixStage(), ImatrixFileStage())


def check(checks: Any, at: tuple, section: Imatrix) -> None:
    """Report mistakes in a model's `imatrix`, at the key path `at` (lib/config/checks.Checks)."""
    if section.file is None:
        checks.uses_corpus((*at, "corpus"), section.corpus)
        return
    checks.file((*at, "file"), section.file)
    _check_file(checks, (*at, "file"), section.file)
    if not section.file.endswith(SUFFIXES):
        checks.add((*at, "file"), f"{show(section.file)} is neither .dat nor .gguf")
    for key in sorted(section.model_fields_set - {"file"}):
        checks.add((*at, key), "has no effect together with file, which is computed already")


def _check_file(checks: Any, at: tuple, file: str) -> None:
    """Report a file of the user's whose header or size nobody should believe."""
    from lib.formats.gguf_bounds import check_imatrix  # takes 0.08 s

    place = checks.place(file)
    if place.is_file():
        try:
            check_imatrix(place)
        except (UserError, OSError) as error:
            checks.add(at, str(error).replace(str(place), file))


def imatrix(shared: Any, name: str, section: Imatrix, conversion: Artifact) -> Artifact:
    """Declare the importance matrix of a model: computed, or the user's file.

    section: the model's `imatrix`. conversion: the unquantized GGUF.
    """
    if section.file:
        suffix = PurePosixPath(section.file).suffix
        path, inputs = f"results/{name}/imatrix{suffix}", {"gguf": conversion}
        return shared.own_file(path, "imatrix_file", name, section.file, inputs=inputs)
    options = section.model_dump(exclude={"corpus"}, exclude_defaults=True)
    return Artifact(
        f"results/{name}/imatrix.{section.format}",
        "imatrix",
        name,
        {"context": section.context, **options},
        inputs={"gguf": conversion, "corpus": shared.corpus(section.corpus)},
        **shared.by_llama_cpp(),
    )


def preflight(inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
    """Check that the user's file fits the model, or that the format keeps what a mixture needs.

    model: lib/config/schema.Model. At most one row.
    """
    section, subject = model.gguf.imatrix, f"models.{name}.gguf.imatrix"
    if section.file:
        yield _own_file(inspector, name, f"{subject}.file", section.file)
        return
    config = inspector.config(name) or {}
    mixture = model.own_gguf.experts if model.own_gguf else any(map(config.get, EXPERT_COUNTS))
    if mixture and section.format == "dat":
        text = "a mixture of experts: format: gguf counts the tokens of each expert, dat does not"
        yield Row(f"{subject}.format", "note", text)


def _own_file(inspector: Inspector, name: str, subject: str, file: str) -> Row:
    """Whether the user's file is an importance matrix and fits the model."""
    from lib.formats.imatrix_file import read_imatrix

    try:
        matrix = read_imatrix(Path(file))
    except (UserError, OSError) as error:
        return Row(subject, "problem", str(error))
    widths = {key: len(entry.values) for key, entry in matrix.entries.items()}
    layers = len({key.split(".")[1] for key in widths if key.startswith("blk.")})
    width = widths.get("blk.0.attn_q.weight")
    text = f"{file}: {len(widths)} entries from {matrix.chunks} chunks"
    return inspector.fits(name, subject, text, layers, width)
