"""The family MLX: by mlx-lm's converter, which runs on processors too."""

import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lib.keys.section import Choice, Number, Read, Section, Text
from lib.keys.values import show, suggestion, to_list
from lib.record.artifact import Artifact
from lib.stages import evaluation
from lib.stages.checked import Inspector, Row
from lib.stages.environments import by_environment
from lib.stages.evaluation import BaseLogitsStage
from lib.stages.family import Family, Forms, Speedometer, entry
from lib.stages.stage import Memory, Size, Sizing, Stage, Time, locked_size

# {mode: (bits, weights of a group), what can be asked for, the default first} of mlx 0.32.4
MODES = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
FORM = r"(\dbit|mxfp[48]|nvfp4)(-[^/]+)?"  # matches the names of all forms
MLX = "mlx[cpu]"  # the package, as in envs/mlx.txt
UNQUANTIZED = "mlx"  # what the evaluation of the unquantized model is called
# Of the name of a form that is another family's too, or differs in case alone, as nvfp4 does from
# NVFP4: their evaluations would be one file on disks that ignore case (macOS, Windows).
SUFFIX = "-mlx"
NOT_READ = re.compile("vision|visual|audio")  # tensors that mlx-lm does not load
GLIBC = (2, 35)  # of mlx's wheels for Linux


class MlxForm(Section):
    """One form: a mode, or in its place bits, and what deviates from it.

    In the list a number such as `4` stands for `{bits: 4}`, a word such as `mxfp4` for its `mode`.
    """

    name: Text | None = Field(
        None,
        description="Name in paths and reports: `4bit` or the mode, alone or with something after "
        "a `-`; left out, that is `g` and a `group_size` that is not the usual one.",
    )
    mode: Choice(Literal[tuple(MODES)]) = Field("affine", description="How weights are rounded.")
    bits: Number(int, 2, 8) | None = Field(
        None, description="Bits of a weight, for `affine`: 2, 3, 4 (if left out), 5, 6 or 8."
    )
    group_size: Number(int, 16, 128) | None = Field(
        None,
        description="Weights that share a scale: 32, 64 (if left out) or 128 for `affine`; the "
        "others have one size each.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The form's options with the defaults of its mode."""
        bits, sizes = MODES[self.mode]
        found = {"bits": self.bits or bits[0], "group_size": self.group_size or sizes[0]}
        return {"mode": self.mode, **found}

    @property
    def kind(self) -> str:
        """What its name begins with: `4bit`, or the mode."""
        return f"{self.options['bits']}bit" if self.mode == "affine" else self.mode

    @property
    def called(self) -> str:
        """Its name."""
        size = self.options["group_size"]
        return self.name or self.kind + f"-g{size}" * (size != MODES[self.mode][1][0])


def to_form(value: Any) -> Any:
    """The keys of MlxForm; a number becomes its bits, a text its mode."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return {"bits": value}
    if isinstance(value, str):
        if value not in MODES:
            raise ValueError(
                f"{show(value)} is neither a number of bits nor one of {', '.join(MODES)}"
                f"{suggestion(value, MODES)}"
            )
        return {"mode": value}
    raise ValueError(f"{show(value)} is neither bits, nor a mode, nor a mapping with one of them")


def to_forms(value: Any) -> list[Any]:
    """A list that is not empty."""
    if forms := to_list(value):
        return forms
    raise ValueError("names no form, such as [4, mxfp4]")


class Mlx(Section):
    """The model in MLX, for Apple's machines, by mlx-lm."""

    forms: Read(list[Read(MlxForm, to_form, int | str | MlxForm)], to_forms) = Field(
        description="One directory for each: bits (`4`), a mode (`mxfp4`, `mxfp8`, `nvfp4`), or a "
        "mapping with the keys below.",
    )


class MlxConvertStage(Stage):
    """Quantize to one form."""

    rule = "mlx_convert"
    column = "mlx"
    is_long = is_weights = True
    # By its code mlx-lm loads lazily, and computes a shard of 5 GB of its output at a time; then
    # the result is loaded. Of 0.27 GB it took 253 MiB, and the check 427 (measured).
    memory = Memory(2000, 1.5, 24000, 0.7)
    time = Time(10, 50)
    output = 1.0

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The bits of a weight, and of each group's scale (and offset)."""
        model, options = artifact.inputs["model"], artifact.options
        weights = sizes.weights(model)
        scale = 16 * (weights.bytes_per_weight if weights else 2)  # affine: two floats
        scale = scale if options["mode"] == "affine" else 8
        bits = options["bits"] + scale / options["group_size"]
        if weights is None:
            return locked_size(model, sizes, bits)
        return Size(round(weights.parameters * bits / 8) + weights.side_files, "tensors")

    def impossible(self, artifact: Artifact, sizes: Sizing) -> str | None:
        """What this machine lacks, or the first matrix that mlx-lm would silently leave out."""
        if lacking := wrong_libc():
            return lacking
        size, weights = artifact.options["group_size"], sizes.weights(artifact.inputs["model"])
        for name, shape in weights.tensors.items() if weights else ():
            read = name.endswith(".weight") and not NOT_READ.search(name)
            if read and len(shape) == 2 and shape[1] % size:
                what = f"the rows of {name} have {shape[1]} weights, no multiple of {size}"
                return f"{artifact.path}: {what} (group_size): mlx-lm would not quantize it"
        return None


class MlxEvaluateStage(BaseLogitsStage):
    """Measure a form, or the unquantized model, by mlx against the base logits."""

    rule = "mlx_evaluate"
    column = "evaluated"
    measures = True
    reads = ("model",)
    memory = Memory(3000, 2.5, 0, 2.5)  # floats become ones of 32 bits, packed weights stay
    time = Time(15, 100)
    # mlx 0.32.4 multiplies matrices on one core: 1.5 to 2 tokens a second of a 1B model, packed or
    # not (measured); llama.cpp on 8 cores does 120.
    per_token = 80.0
    counted = evaluation.BY_ENGINE
    fixed_threads = 1
    bytes_per_weight = 0.5
    gpu = ""
    priority = 1
    typical = 1_000

    def size(self, artifact: Artifact, sizes: Sizing) -> None:
        """None: the file is small, and no formula predicts its size."""


class MlxFamily(Family):
    """MLX directories, one for each form; on the hub a repository each."""

    name, title, phrase = "mlx", "MLX", " in MLX"
    library, tags = "mlx", ("mlx",)
    colours = ("#8a6d00", "#e0bd3f")
    section = Mlx
    section_says = "Make MLX directories."
    repository_says = "Repositories for MLX, one for each form, with `{form}` (4bit) in their name."
    repository_by_form = True
    form_pattern = re.compile(f"{FORM}|(?i:{UNQUANTIZED})")
    stages = (MlxConvertStage(), MlxEvaluateStage())
    quantized = {"mlx_convert": True}
    by_base_logits = True

    def names(self, model: Any) -> list[str]:
        """As its directory, and `nvfp4-mlx` in place of `nvfp4` where NVFP4 is another family's."""
        others = (family for family in model.families() if family is not self)
        taken = {form.lower() for family in others for form in family.names(model)}
        called = [form.called for form in model.mlx.forms]
        return [name + SUFFIX * (name.lower() in taken) for name in called]

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        taken = {}
        for index, (form, called) in enumerate(self._named(model)):
            here = (*at, "forms", index)
            for key, known in zip(("bits", "group_size"), MODES[form.mode], strict=True):
                if form.options[key] not in known:
                    listed = ", ".join(map(str, sorted(known)))
                    checks.add((*here, key), f"{form.options[key]}: {form.mode} has {listed}")
            checks.name((*here, "name"), form.called)
            if form.called != form.kind and not form.called.startswith(f"{form.kind}-"):
                wanted = f"is neither {form.kind} nor {form.kind}- and more, as it must be"
                checks.add((*here, "name"), f"{show(form.called)} {wanted}")
            first = taken.setdefault(called.lower(), index)
            if first != index:
                text = f"{show(called)} is the name of forms[{first}] too"
                checks.add((*here, "name"), text)
        repository = model.publish and model.publish.mlx
        if repository and "{form}" not in repository:
            text = "each form has a repository of its own: put {form} into the name"
            checks.add((*at[:-1], "publish", "mlx"), text)

    def _named(self, model: Any) -> Iterator[tuple[MlxForm, str]]:
        """Each form, and its name among those of all families."""
        return zip(model.mlx.forms, self.names(model), strict=True)

    def repository_form(self, model: Any, form: str) -> str:
        """As its directory: nvfp4, also where the form is called nvfp4-mlx."""
        return next(asked.called for asked, called in self._named(model) if called == form)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact) -> Forms:
        tools = by_environment(shared, "mlx")
        forms = {
            called: Artifact(
                f"results/{name}/mlx/{form.called}",
                "mlx_convert",
                name,
                form.options,
                inputs={"model": weights},
                directory=True,
                **tools,
            )
            for form, called in self._named(model)
        }
        found = Forms([*forms.values()], forms)
        evaluation.by_engine(
            shared, found, name, model, weights, "mlx_evaluate", "model", UNQUANTIZED, **tools
        )
        return found

    def speedometer(self, shared: Any) -> Speedometer:
        found = by_environment(shared, "mlx")
        engine = f"mlx-lm {found['tools']['mlx-lm']}, mlx {found['tools'][MLX]}"
        # Two layers of 256 columns in 16 bits: 50 tokens a second (mlx 0.32.4, measured).
        slow = "MLX is for Apple's GPUs; on processors it is so slow that it tells nothing"
        unfit = "" if platform.system() == "Darwin" else slow
        return Speedometer(engine, ["mlx_speed.py"], found["uses"], unfit)

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """None holds all forms; each is alone in the repository that is called after it."""
        return {"main": []} | {form: [entry(up, "")] for form, up in made.forms.items()}

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check this machine."""
        wrong = wrong_libc() or unknown((inspector.config(name) or {}).get("model_type"))
        yield Row(f"{name} mlx", "problem" if wrong else "ok", wrong or "can be made here")
        yield from super().preflight(inspector, name, model)


FAMILY = MlxFamily()


def unknown(kind: str | None) -> str | None:
    """That mlx-lm does not know this model_type; None if it does, or is not installed yet."""
    installed = Path("resources/environments/mlx/venv/lib").glob("python*/site-packages/mlx_lm")
    for place in installed if kind else ():
        renamed = f'"{kind}"' in (place / "utils.py").read_text(encoding="utf-8")
        if not renamed and not (place / f"models/{kind}.py").is_file():
            return f"{kind}: mlx-lm does not know this model_type; --config skip=mlx leaves it out"
    return None


def wrong_libc() -> str | None:
    """Why mlx cannot be installed on this machine; None if it can, or that is not known."""
    library, version = platform.libc_ver()
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if platform.system() != "Linux" or (library == "glibc" and found >= GLIBC):
        return None
    there = f"{library} {version}" if library else "another C library"
    wanted = ".".join(map(str, GLIBC))
    return f"MLX needs glibc {wanted}, and here is {there}; --config skip=mlx leaves it out"
