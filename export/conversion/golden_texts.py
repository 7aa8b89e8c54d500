"""Golden examples of texts, written for this project, and generated sentences to compare models on without data."""

import random

# Clear cases and hard ones, short and long, everyday spelling and treebank spelling, characters beyond ASCII.
GOLDEN_TEXTS = (
    "A wonderful film.",
    "I hated every minute of it.",
    "The plot makes no sense, and nobody seems to care.",
    "Funny, warm and beautifully acted from start to finish!",
    "Not bad at all.",
    "it 's a mess , and it does n't even try to be anything else .",
    "Don't waste your money on this one.",
    "An unforgettable performance by the whole cast; I would watch it again tomorrow.",
    "dull",
    "GREAT fun for the kids, and their parents won't be bored either.",
    "The first half drags, but the ending is so moving that I forgave everything that came before it.",
    "Schöne Bilder, leere Geschichte.",
    "So much talent, so little to show for it \u2026 what a pity \U0001f61e",
    "\u201cBrilliant\u201d is the word \u2013 simply brilliant.",
    "The camera work is competent, the music is loud, the jokes are old, and by the time the villain finally explains"
    " his plan I had long stopped listening, which is a shame, because somewhere in these two and a half hours there"
    " hides a small, sharp and honest film about a family that cannot talk to each other.",
    "A smart, touching story that stays with you.",
)

_SUBJECTS = (
    "The film",
    "This story",
    "The acting",
    "Her new book",
    "The whole show",
    "Our guide",
    "The second half",
)
_VERBS = (
    "is",
    "was",
    "seems",
    "feels",
    "remains",
    "isn't",
    "was never",
    "turned out to be",
)
_ADJECTIVES = (
    "wonderful",
    "dull",
    "clumsy",
    "moving",
    "funny",
    "pointless",
    "clever",
    "forgettable",
    "rich",
    "cold",
)
_TAILS = (
    "",
    " from start to finish",
    ", and I would go again",
    " but far too long",
    ", sadly",
    "!",
    " in every way",
)


def made_up_sentences(count: int, seed: int = 1) -> list[str]:
    """Generate sentences of different length from a small grammar; equal seeds give equal sentences."""
    rng = random.Random(seed)

    def clause() -> str:
        adjectives = f"{rng.choice(_ADJECTIVES)} and {rng.choice(_ADJECTIVES)}"
        return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {adjectives}{rng.choice(_TAILS)}"

    return [". ".join(clause() for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))) + "." for _ in range(count)]
