"""What is asked about a picture and what is answered. How that becomes tokens is `core_model.language.dialogue_format`.

Training draws from many phrasings; testing asks one standard question. The first word of the answer to a question for
defects is "Yes" or "No", so that the judgement can be read from the text alone (`core_model.metrics`).
"""

from __future__ import annotations

import numpy as np

# The 3x3 grid of places, row by row.
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)

STANDARD_QUESTION = "Is there any defect in this picture?"

JUDGE_QUESTIONS = (
    STANDARD_QUESTION,
    "Is there a defect in the picture?",
    "Does this {category} have any defect?",
    "Can you see any damage here?",
    "Is anything wrong with this {category}?",
    "This should be a flawless {category}. Is there any anomaly?",
    "Is there an anomaly in the image?",
    "Do you find any flaw in this picture?",
    "Inspect the {category}: is it damaged anywhere?",
    "Does the surface show anything unusual?",
)
JUDGE_DEFECTIVE = (
    "Yes, there is a defect at the {place} of the picture.",
    "Yes, this {category} has a defect at the {place}.",
    "Yes, I see an anomaly at the {place} of the picture.",
    "Yes, the {category} is damaged at the {place}.",
)
JUDGE_GOOD = (
    "No, there is no defect in the picture.",
    "No, this {category} shows no defect.",
    "No, I see no anomaly in the picture.",
    "No, the {category} is in good condition.",
)
WHERE_QUESTIONS = (
    "Where is it?",
    "Where is the defect?",
    "In which part of the picture?",
    "Can you point out the place?",
)
WHERE_ANSWERS = ("It is at the {place}.", "The defect is at the {place} of the picture.", "At the {place}.")
LOOK_QUESTIONS = ("What does it look like?", "Can you describe the defect?", "What kind of defect is it?")
LOOKS = {
    "poisson": "It is an irregular patch whose structure does not fit the surface around it",
    "cutpaste": "It is a patch with sharp edges that does not belong there",
    "scar": "It is a thin strip that does not belong there",
    "perlin": "It is a region of foreign texture with ragged edges",
    "scratch": "It is a thin scratch",
    "spot": "It is a spot of another tone",
    "fissure": "It is a jagged crack",
    "pit": "It is a small hole",
    "chip": "It is a piece broken off at the edge",
    "stain": "It is a stain that mutes the texture",
    "wear": "It is an area whose finish differs from the rest",
    "crack": "It is a thin crack",
    "uneven": "It is an area with an uneven surface",
}
WHAT_QUESTIONS = ("What is in the picture?", "What does the picture show?")
WHAT_ANSWERS = ("It is a picture of a {category}.", "The picture shows a {category}.")
GOOD_QUESTIONS = ("Can it pass the inspection?", "Is it fit for use?", "So is the {category} in order?")
GOOD_ANSWERS = ("Yes, it can pass: nothing is wrong with it.", "Yes, it looks as it should.")


def places_of(mask: np.ndarray) -> tuple[str, ...]:
    """Cells of the 3x3 grid that hold the defect, the fullest first: the one with the largest share of its pixels and
    any other with at least 30 %. Empty for an empty mask. mask: (S, S), above 0 = defect."""
    height, width = mask.shape
    rows = [-(-cell * height // 3) for cell in range(4)]  # pixel r lies in row r * 3 // height of the grid
    columns = [-(-cell * width // 3) for cell in range(4)]
    counts = np.array(
        [np.count_nonzero(mask[rows[r] : rows[r + 1], columns[c] : columns[c + 1]]) for r in range(3) for c in range(3)]
    )
    if not counts.any():
        return ()
    shares = counts / counts.sum()
    order = np.argsort(-shares, kind="stable")
    return tuple(PLACES[cell] for rank, cell in enumerate(order) if rank == 0 or shares[cell] >= 0.3)


def place_text(places: tuple[str, ...]) -> str:
    """``top left``, or ``top left and center``; "" for no place. It is what `Sample.place` holds."""
    return " and ".join(places)


def readable(name: str) -> str:
    """A folder's name as words: ``metal_nut`` -> ``metal nut``."""
    return name.replace("_", " ").replace("-", " ").strip().lower()


def standard_turns(category: str, place: str, *, defective: bool) -> tuple[tuple[str, str], ...]:
    """The one turn asked of test pictures, with the answer that is expected. place may be "" for a defective picture
    whose mask is empty."""
    answer = JUDGE_GOOD[0]
    if defective:
        answer = JUDGE_DEFECTIVE[0] if place else "Yes, there is a defect in the picture."
    return ((STANDARD_QUESTION, answer.format(place=place, category=readable(category))),)


def training_turns(
    category: str, place: str, kind: str, share: float, rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
    """One or two turns about a training picture: the judgement with its place first, then in 40 % of the cases a
    follow-up.

    Args:
        share: defective pixels as a share of the picture.
    """
    words = {"category": readable(category), "place": place}

    def pick(texts: tuple[str, ...]) -> str:
        return texts[int(rng.integers(len(texts)))].format(**words)

    turns = [(pick(JUDGE_QUESTIONS), pick(JUDGE_DEFECTIVE if place else JUDGE_GOOD))]
    if rng.random() < 0.4:
        choice = int(rng.integers(3))
        if choice == 0:
            turns.append((pick(WHAT_QUESTIONS), pick(WHAT_ANSWERS)))
        elif not place:
            turns.append((pick(GOOD_QUESTIONS), pick(GOOD_ANSWERS)))
        elif choice == 1:
            turns.append((pick(WHERE_QUESTIONS), pick(WHERE_ANSWERS)))
        else:
            look = LOOKS.get(kind, "It differs from the surface around it")
            turns.append((pick(LOOK_QUESTIONS), f"{look}, covering {_size_words(share)} of the picture."))
    return tuple(turns)


def _size_words(share: float) -> str:
    if share < 0.01:
        return "less than one percent"
    return f"about {round(100 * share)} percent"
