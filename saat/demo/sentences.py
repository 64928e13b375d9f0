"""English sentences for the demo's speakers: templates filled by a seeded draw from word lists.

The lists are written so that every phoneme of American English is common enough to be learned, the rare ones
("vision", "toy", "wool") included.
"""

import random
import re

TEMPLATES = (
    "The {adjective} {person} {did} the {adjective} {thing} {place}.",
    "{name} {did} {number} {things} {when}.",
    "{when_first}, the {person} {went} {place} with {owner} {thing}.",
    "Why did the {person} {do} the {adjective} {thing} {when}?",
    "We should {do} the {adjective} {thing} before the {event}.",
    "{name} and the {person} talked about the {topic} for {duration}.",
    "There was a {thing} {place}, beside {owner} {adjective} {thing}.",
    "Nobody knew why the {adjective} {animal} {went} {place}.",
    "If it's {weather} {when_next}, {name} will {do} the {thing}.",
    "I thought that {name} {did} the {thing}, but it was only the {animal}.",
    "Please {do} {owner} {things}, and don't wake the {animal}.",
    "My {relative} was too {feeling} to {do} the {thing} at the {event}.",
    "Most of the {things} were {adjective}, though {number} were {adjective}.",
    "The {topic} made every {person} {feeling} during the {event}.",
    "Have you heard how {owner} {relative} {did} the {thing} {when}?",
    "A {person} with {number} {things} {went} {place}.",
)

# Each list is one text, its entries separated by commas.
_LISTS = {
    "name": """
        Arthur, Beth, Charlie, Joyce, Floyd, George, Heather, Ian, Joan, Keith, Lucy, Margaret, Nathan,
        Olivia, Paul, Ruth, Sharon, Theo, Ursula, Vera, Walter, Yolanda, Zoe, Judith, Roy, Howard,
        Shirley
    """,
    "person": """
        teacher, shepherd, judge, young woman, cook, pilot, boy, usher, engineer, chief, guard,
        employer, nurse, mayor, youth, fisherman, thief, sailor, beggar, violin player, mechanic,
        washerwoman, author, king, chemist, butcher, cowboy, royal guest
    """,
    "relative": """
        mother, father, brother, uncle, cousin, daughter, nephew, godfather, aunt, niece, grandson
    """,
    "owner": "my, your, his, her, our, their",
    "animal": """
        dog, horse, thrush, goose, fox, wolf, sheep, mouse, tortoise, frog, owl, badger, pigeon, ox,
        cow, hedgehog, raven, young bear, otter, chicken, yak, zebra
    """,
    "adjective": """
        beige, noisy, thick, broken, wooden, unusual, cheap, heavy, yellow, smooth, curious, loud,
        wealthy, shiny, good, frozen, purple, gentle, foolish, huge, royal, northern, dusty, crooked,
        quiet, woolen, moist, orange, useless, fair, brown, early, other
    """,
    "thing": """
        treasure, book, violin, television, coin, brush, jar of honey, basket, cushion, garage, watch,
        pie, bathtub, yacht, engine, feather, toy, cheese, guitar, cloth, window, poison, hammer,
        kitchen door, bridge, oil lamp, mirror, telephone, sugar bowl, map
    """,
    "things": """
        measures of oil, oranges, oysters, cookies, chairs, boxes, thorns, wheels, hooks, toys,
        cherries, letters, pebbles, shovels, jewels, gloves, mushrooms, towels, paths, coins, yards of
        rope, visions, cushions, leather boots, good books, hours of leisure, yellow bags
    """,
    "topic": """
        usual weather, price of sugar, journey north, collision, new church, broken promise, hooded owl,
        war, choice of music, dangerous voyage, television show, decision, death of the king, food, joy
        of cooking, invasion, future of the town, youth choir, measure of truth
    """,
    "did": """
        found, measured, pushed, destroyed, enjoyed, watched, threw, forgot, carried, changed, shook,
        bought, avoided, painted, followed, gathered, took, borrowed, pulled, joined, sold, used, hid,
        weighed, noticed, chose
    """,
    "do": """
        find, measure, push, destroy, enjoy, watch, throw, forget, carry, change, shake, buy, avoid,
        paint, follow, gather, take, borrow, pull, join, sell, use, hide, look for, put away, choose
    """,
    "went": """
        walked, slept, hurried, stood, danced, waited, shouted, vanished, stumbled, coughed, arrived,
        crouched, yawned, turned around, sang, stayed, laughed
    """,
    "place": """
        by the river, in the garage, near the north gate, under the bridge, at the old church, behind
        the butcher's shop, on the beach, beyond the wood, in the thick fog, around the corner, above
        the valley, at my neighbor's house, on the pleasure boat, through the yard, in Illinois, across
        the square, down the south path, in the royal kitchen, on the Asian coast
    """,
    "when": """
        last night, before breakfast, on Thursday, this morning, yesterday, in July, after the storm, at
        five o'clock, at the usual hour, once again, for pleasure, without a noise, all year
    """,
    "when_first": """
        Last month, Before noon, On Tuesday, In the evening, After church, That year, One cold day,
        Against all advice, Full of joy, As usual, To be sure
    """,
    "when_next": "tomorrow, next week, on Saturday, tonight, in the south, this fall, at noon",
    "duration": "an hour, three days, the whole voyage, half a year, thirty minutes, a good while",
    "number": "two, three, four, five, six, eight, nine, a few, a hundred, fourteen, both",
    "event": "voyage, wedding, meeting, thunderstorm, concert, choir show, vote, game, harvest",
    "weather": "sunny, foggy, cloudy, cool, warm enough, too hot, moist, snowy, wet",
    "feeling": "tired, annoyed, cheerful, nervous, confused, joyful, shy, worried, thirsty",
}
WORDS = {slot: tuple(" ".join(words.split()).split(", ")) for slot, words in _LISTS.items()}


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences of about 6 to 14 words; one `seed` gives the same ones on every machine."""
    rng = random.Random(seed)
    sentences: dict[str, None] = {}  # an ordered set
    while len(sentences) < count:
        sentences[_fill(rng.choice(TEMPLATES), rng)] = None
    return list(sentences)


def _fill(template: str, rng: random.Random) -> str:
    """One sentence: every slot drawn from its list, no word twice."""
    used: list[str] = []

    def draw(slot: re.Match) -> str:
        used.append(rng.choice([word for word in WORDS[slot[1]] if word not in used]))
        return used[-1]

    sentence = re.sub(r"\{(\w+)\}", draw, template)
    # "an" before a vowel: spelling tells, for all words above that can follow an "a".
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
    return sentence[0].upper() + sentence[1:]
