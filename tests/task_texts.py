"""Files of tasks in llama-perplexity's formats, made of sentences of Python's own manual."""

import random
import re
import struct
from pathlib import Path
from pydoc_data.topics import topics


def sentences(count: int) -> list[list[str]]:
    """So many different sentences of 8 to 24 words, as lists of words."""
    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = dict.fromkeys(re.findall(r"[A-Z][a-z][\w -]+\.(?= [A-Z])", text))
    split = [sentence.split() for sentence in found if "_" not in sentence]
    return [words for words in split if 8 <= len(words) <= 24][:count]


def make_tasks(directory: Path, count: int = 40) -> None:
    """Write hellaswag.txt, winogrande.csv and arc.bin, of so many tasks each, into `directory`.

    Which of four halves, or which of two words, is the one of the sentence?
    """
    draw, every = random.Random(0), sentences(count)
    halves = [(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :])) for w in every]
    hellaswag, winogrande, arc = [], [], []
    for number, words in enumerate(every):
        right, (before, after) = draw.randrange(4), halves[number]
        endings = [half for _, half in draw.sample(halves, 5) if half != after][:3]
        endings.insert(right, after)
        hellaswag += [before, str(right), *endings]
        arc.append(_binary(before, endings, right))
        sentence, word = [*words], len(words) // 2
        sentence[word] = "_"
        pair = [words[word], "hardly"]
        if right % 2:
            pair.reverse()
        text = f'"Well, {" ".join(sentence)}"' if number % 3 else " ".join(sentence)
        winogrande.append(f"{number},{text},{pair[0]},{pair[1]},{1 + right % 2}")
    (directory / "hellaswag.txt").write_text("\n".join(hellaswag) + "\n")
    (directory / "winogrande.csv").write_text("\n".join(winogrande) + "\n")
    places = [4 + 4 * count + sum(map(len, arc[:number])) for number in range(count)]
    (directory / "arc.bin").write_bytes(struct.pack(f"<{count + 1}I", count, *places))
    with (directory / "arc.bin").open("ab") as file:
        file.write(b"".join(arc))


def _binary(question: str, answers: list[str], right: int) -> bytes:
    texts = [struct.pack("<I", len(text)) + text.encode() for text in (question, *answers)]
    labels = struct.pack("<4i", *(index == right for index in range(4)))
    return texts[0] + struct.pack("<I", 4) + b"".join(texts[1:]) + labels + struct.pack("<I", 0)
