"""The family GGUF: a conversion, its importance matrix, its quants and their shards."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lib.keys import values
from lib.keys.section import Choice, FileSize, Read, Section, Text
from lib.keys.values import show
from lib.record.artifact import Artifact
from lib.record.tools import own_tool
from lib.stages import cold, companions, convert, evaluation, imatrix, mixes, quantize
from lib.stages.checked import Inspector, Row
from lib.stages.extract_lora import named_by
from lib.stages.family import Family, Forms, Speedometer, entry, file_entry
from lib.stages.imatrix import Imatrix
from lib.stages.mixes import Mixes, Quant

Outtype = Literal["bf16", "f16", "f32", "q8_0", "tq1_0", "tq2_0", "auto"]


class Gguf(Section):
    """The model as GGUF: the conversion, its imatrix, its quants and their shards."""

    sections = frozenset({"imatrix", "mixes"})

    outtype: Choice(Outtype) = Field(
        "bf16",
        description="Type of the conversion that all quants are made from; the file is named after "
        "it. `auto`: the 16-bit float type that loses least.",
    )
    imatrix: Annotated[
        Annotated[Imatrix, Tag("<imatrix>")] | Annotated[Literal[False], Tag("<false>")],
        Discriminator(lambda value: "<false>" if value is False else "<imatrix>"),
        BeforeValidator(values.to_imatrix, json_schema_input_type=Imatrix | bool | None),
    ] = Field(
        False,
        description="The importance matrix; `true` or nothing after the key means its defaults. "
        "Left out or false: every quant is static.",
    )
    quants: list[Read(Quant, values.to_quant, str | Quant)] = Field(
        [],
        description="The quants: types, or mappings with the keys below. The conversion's own type "
        "(BF16) among them means the conversion itself: it is kept, split and published.",
    )
    mixes: Mixes = Field(default_factory=Mixes, description="How mixes are found.")
    mmproj: companions.outtypes("f16") = Field(
        [],
        description="The projector of a multimodal model, with its vision or audio tower: `true` "
        "for F16, or its types.",
    )
    mtp: companions.outtypes("q8_0") = Field(
        [],
        description="The model's layers for multi-token prediction as a draft: `true` for Q8_0, or "
        "its types.",
    )
    lora: Read(dict[str, Text], values.to_mapping) = Field(
        {},
        description="LoRA adapters for this model, by name: directories as peft saves them, hub "
        "ids, or `./results/MODEL/lora/NAME`, which another model extracts.",
    )
    split_max_size: FileSize | None = Field(
        None,
        description="Make shards of at most this size besides the whole files: a whole number and "
        "M or G (millions or thousands of millions of bytes). What fits into one is linked.",
    )
    metadata: Read(
        dict[str, values.Scalar | list[values.Scalar]], values.to_metadata, dict[str, Any]
    ) = Field(
        {}, description="Header fields to set in the finished files, such as `general.license`."
    )

    @property
    def has_targets(self) -> bool:
        """Whether a quant is a mix that is to be found."""
        return any(quant.target for quant in self.quants)

    def parted(self, conversion: str) -> tuple[list[Quant], bool]:
        """The quants without the conversion, and whether the list names the conversion too.

        conversion: the conversion's form, such as BF16.
        """
        quants = [quant for quant in self.quants if not quant.is_conversion(conversion)]
        return quants, len(quants) < len(self.quants)


class GgufFamily(Family):
    """GGUF files, whole or in shards."""

    name, title, phrase = "gguf", "GGUF", " as GGUF for llama.cpp"
    library, tags = "gguf", ("gguf", "llama.cpp")
    colours = ("#1f5fbf", "#7fb0ff")
    section = Gguf
    section_says = "Make GGUF files."
    repository_says = "Repository for the quants, shards and imatrix."
    by_base_logits = True
    needs_safetensors = False
    stages = (*convert.STAGES, *imatrix.STAGES, *mixes.STAGES, *quantize.STAGES)
    stages = (*stages, *companions.STAGES, *evaluation.STAGES, *cold.STAGES)
    quantized = {"convert": False, "source_gguf": False, "quantize": True, "quantize_mix": True}

    def corpora(self, model: Any) -> set[str]:
        """The names of the texts of a computed imatrix, and of mixes."""
        found = model.gguf.imatrix
        own = {found.corpus} if found and found.file is None else set()
        return own | mixes.corpora(model.gguf)

    def references(self, model: Any) -> list[str]:
        """The LoRA adapters from outside."""
        return [source for source in model.gguf.lora.values() if not named_by(source)]

    def adapters_of(self, model: Any) -> list[str]:
        """The models that extract the other LoRA adapters."""
        return [found[0] for source in model.gguf.lora.values() if (found := named_by(source))]

    def names(self, model: Any) -> list[str]:
        """The quants' names, and the conversion's."""
        return [*(quant.name for quant in model.gguf.quants), model.conversion]

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        gguf, conversion = model.gguf, model.conversion
        if gguf.imatrix:
            imatrix.check(checks, (*at, "imatrix"), gguf.imatrix)
        if model.own_gguf and "outtype" in gguf.model_fields_set:
            text = f"needs safetensors, and source is the GGUF file {model.source}"
            checks.add((*at, "outtype"), text)
        what = "the source" if model.own_gguf else "the conversion, which is named after outtype"
        taken, kept = {conversion.lower(): what}, False
        for index, quant in enumerate(gguf.quants):
            if quant.name == quantize.INVALID:
                continue
            if quant.is_conversion(conversion) and not kept:
                kept = True
                continue
            here, key = (*at, "quants", index), quant.name.lower()
            if quant.target and not key:
                checks.add(here, "name is missing: a mix is called by it")
                continue
            checks.form_name((*here, "name"), quant.name, self)
            if key in taken:
                checks.add((*here, "name"), f"{show(quant.name)} is the name of {taken[key]} too")
            taken.setdefault(key, f"quants[{index}]")
            if quant.target:
                mixes.check(checks, here, quant, model)
                continue
            if quant.type is None:
                keys = ", ".join(mixes.TARGETS)
                checks.add(here, f"type is missing, or a target in its place ({keys})")
                continue
            quantize.check(checks, here, quant, model)
            if quant.type == "MXFP4_MOE" and checks.experts(name) == 0:
                text = "MXFP4_MOE is for mixtures of experts: of this dense model it makes Q8_0"
                checks.add((*here, "type"), text)
        mixes.check_section(checks, (*at, "mixes"), model)
        companions.check(checks, at, name, model)

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check that the converter knows the model, and that the user's files fit it."""
        yield from convert.preflight(inspector, name)
        if model.gguf.imatrix:
            yield from imatrix.preflight(inspector, name, model)
        yield from companions.preflight(inspector, name, model)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact | None) -> Forms:
        gguf, outtype = model.gguf, model.conversion
        quants, kept = gguf.parted(outtype)
        conversion = convert.conversion(shared, name, model, weights)
        found = Forms([conversion], {outtype: conversion})
        matrix = None
        if gguf.imatrix and any(quant.imatrix for quant in quants):
            matrix = imatrix.imatrix(shared, name, gguf.imatrix, conversion)
            found.artifacts.append(matrix)
        made = {}
        on = conversion, matrix
        measured = mixes.sensitivity(shared, name, gguf.mixes, *on) if gguf.has_targets else None
        found.artifacts += [measured] if measured else []
        for quant in quants:
            if quant.target:
                mix, made[quant.name] = mixes.mix(shared, name, quant, gguf.mixes, *on, measured)
                found.artifacts.append(mix)
                found.mixes[quant.name] = mix
            else:
                made[quant.name] = quantize.quantize(shared, name, quant, *on)
        found.forms |= made
        found.artifacts += made.values()
        for form, finished in (({outtype: conversion} if kept else {}) | made).items():
            if gguf.metadata:
                finished = quantize.label(name, finished, gguf.metadata)
                found.artifacts.append(finished)
            if gguf.split_max_size:
                shards = quantize.split(shared, name, form, finished, gguf.split_max_size)
                found.artifacts.append(shards)
                found.shards[form] = shards
        found.companions = companions.declare(shared, name, model, weights, conversion)
        found.artifacts += found.companions.values()
        if model.evaluate is not None:
            evaluation.evaluate(shared, found, name, model.evaluate, conversion)
        return found

    def cool(self, shared: Any, name: str, made: Forms) -> list[list[Artifact]]:
        """Of each quant: its own note, that of its labelled copy and that of its shards."""
        quants = {form: up for form, up in made.forms.items() if self.quantized[up.rule]}
        copies = {up.inputs["gguf"]: [up] for up in made.artifacts if up.rule == "label"}
        shards = {form: [up] for form, up in made.shards.items()}
        forms = ([up, *copies.get(up, []), *shards.get(form, [])] for form, up in quants.items())
        return cold.declare(shared, name, forms, made.artifacts)

    def speedometer(self, shared: Any) -> Speedometer:
        version = shared.llama_version
        options = shared.llama_cpp.options
        built = json.dumps(options | {"version": version})
        engine = f"llama.cpp {version}"
        if options["path"] and (tool := own_tool(options["path"], "llama-bench")):
            # The same version may be compiled anew with other flags.
            when = datetime.fromtimestamp(tool.stat().st_mtime, UTC)
            engine += f", own build of {when.isoformat(timespec='seconds')}"
        return Speedometer(engine, ["gguf_speed.py", "--llama-cpp", built])

    def card_options(self, model: Any, forms: dict[str, Artifact]) -> dict[str, Any]:
        found = model.gguf.imatrix
        if not any("imatrix" in artifact.inputs for artifact in forms.values()):
            return {}
        if found.file:
            return {"imatrix": {"format": PurePosixPath(found.file).suffix[1:]}}
        return {"imatrix": found.model_dump(include={"corpus", "chunks", "context", "format"})}

    def published(self, made: Forms) -> dict[str, Artifact]:
        """The quants; those with fields of `metadata` where there are such."""
        labelled = {up.inputs["gguf"]: up for up in made.artifacts if up.rule == "label"}
        return {form: labelled.get(gguf, gguf) for form, gguf in self.gated(made).items()}

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """All on main: the GGUF files with their shards and companions, mixes, the imatrix."""
        files = []
        for form, gguf in self.published(made).items():
            shards = made.shards[form].path if form in made.shards else None
            files.append(file_entry(gguf) | {"shards": shards})
        matrices = (up for up in made.artifacts if up.rule in ("imatrix", "imatrix_file"))
        files += [entry(mix, f"mixes/{form}.txt") for form, mix in made.mixes.items()]
        beside = [*made.companions.values(), *matrices]
        return {"main": [*files, *map(file_entry, beside)]}

    def made_from(self, name: str, made: Forms, merge: Artifact | None = None) -> dict[str, str]:
        """The merge, if the model is one, the conversion, and what mixes were chosen by."""
        behind = [made.artifacts[0]]
        behind += [mix.inputs["sensitivity"] for mix in made.mixes.values()]
        paths = {PurePosixPath(up.path).name: up.path for up in behind}
        return super().made_from(name, made, merge) | paths


FAMILY = GgufFamily()
