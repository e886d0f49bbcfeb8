"""The families' Lines by name, in the order in which tables and pages show them."""

from lib.cards.compressed_tensors import CompressedTensorsLines
from lib.cards.exl2 import Exl2Lines
from lib.cards.exl3 import Exl3Lines
from lib.cards.extract_lora import ExtractLoraLines
from lib.cards.gguf import GgufLines
from lib.cards.lines import Lines
from lib.cards.mlx import MlxLines
from lib.cards.safetensors import SafetensorsLines

LINES: dict[str, Lines] = {
    lines.name: lines
    for lines in (
        GgufLines(),
        Exl2Lines(),
        Exl3Lines(),
        CompressedTensorsLines(),
        MlxLines(),
        ExtractLoraLines(),
        SafetensorsLines(),
    )
}
