"""Readable titles, all different after normalisation, and the two kinds of planted duplicates."""

from __future__ import annotations

import numpy as np

CATEGORIES = (
    "Cooking", "Travel", "Music", "Science", "Sports", "History", "Gardening", "Film",
    "Crafts", "Gaming", "Nature", "Fitness", "Technology", "Photography", "Books", "Comedy",
)  # fmt: skip
TOPICS = (
    "Pasta", "Island", "Jazz", "Comet", "Cycling", "Viking", "Orchard", "Noir",
    "Pottery", "Chess", "Whale", "Yoga", "Robot", "Portrait", "Poetry", "Sketch",
    "Bakery", "Desert", "Opera", "Quantum", "Climbing", "Roman", "Herb", "Western",
    "Weaving", "Racing", "Forest", "Rowing", "Satellite", "Street", "Fable", "Satire",
)  # fmt: skip
ADJECTIVES = (
    "Quiet", "Golden", "Hidden", "Bright", "Lost", "Gentle", "Wild", "Ancient", "Modern", "Secret",
    "Slow", "Brave", "Silver", "Endless", "Curious", "Simple", "Grand", "Café", "Déjà", "Früh",
    "Distant", "Crimson", "Humble", "Electric", "Frozen", "Summer", "Midnight", "Northern", "Little", "Open",
)  # fmt: skip
NOUNS = (
    "Journey", "Lesson", "Story", "Morning", "Challenge", "Guide", "Letter", "Season", "Workshop", "Diary",
    "Mystery", "Garden", "Project", "Night", "Road", "Promise", "Window", "Festival", "Voyage", "Kitchen",
    "Archive", "Playbook", "Riddle", "Harbour", "Tale", "Bridge", "Signal", "Weekend", "Portfolio", "Companion",
)  # fmt: skip
ADDED_WORDS = ("Remastered", "Official", "Uncut", "Extended", "Reloaded")
_PLAIN = str.maketrans("éèêáàâíìóòúùüñ", "eeeaaaiioouuun")


def _name(words: tuple[str, ...], index: int) -> str:
    """Return word ``index``; after all words were used once, a round number is appended."""
    round_number, position = divmod(index, len(words))
    return words[position] if round_number == 0 else f"{words[position]} {round_number + 1}"


def category_names(n_categories: int) -> list[str]:
    """Return ``n_categories`` different category names."""
    return [_name(CATEGORIES, index) for index in range(n_categories)]


def item_titles(topics: np.ndarray) -> list[str]:
    """Return one title an item, "<adjective> <topic> <noun>", all different.

    Args:
        topics: int ``[N]`` topic of each item.
    """
    combinations = len(ADJECTIVES) * len(NOUNS)
    stride = 373  # coprime to the number of combinations, so it visits all of them in a mixed order
    used: dict[int, int] = {}
    titles = []
    for topic in topics.tolist():
        serial = used.get(topic, 0)
        used[topic] = serial + 1
        round_number, position = divmod(serial, combinations)
        adjective, noun = divmod((position * stride + topic * 97) % combinations, len(NOUNS))
        title = f"{ADJECTIVES[adjective]} {_name(TOPICS, topic)} {NOUNS[noun]}"
        titles.append(title if round_number == 0 else f"{title}, Part {round_number + 1}")
    return titles


def same_title(title: str, variant: int) -> str:
    """Return a title that equals ``title`` after folding case, accents, punctuation and white space."""
    variants = (
        title.upper(),
        title.lower() + "!",
        "  " + title.replace(" ", "   ") + " ",
        title.replace(" ", " - ", 1) + "...",
        title.translate(_PLAIN).replace(" ", "_") + "?",
    )
    return variants[variant % len(variants)]


def near_title(title: str, variant: int) -> str:
    """Return a title with one word added or the first two words swapped."""
    if variant % 2 == 0:
        return f"{title} {ADDED_WORDS[variant // 2 % len(ADDED_WORDS)]}"
    first, second, *rest = title.split(" ")
    return " ".join([second, first, *rest])
