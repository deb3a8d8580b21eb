"""The names of people, places and things, and the words, that appear in problems and in pretraining pages."""

from __future__ import annotations

NAMES = (
    "Emily Tom Mia Ben Anna Leo Nora Sam Ida Max Lucy Paul Rosa Hugo Clara Finn Ella Omar Jane Otto Mary Karl Lena Noah"
).split()

SURNAMES = "Berg Carter Diaz Evans Fox Gray Hill Ito Kim Lane Moss Novak Park Reed Stone West".split()

TOWNS = "Alder Brook Coldwell Dunmore Eastry Fairhaven Glenford Harrow Marlow Northam Oakton Rivermouth".split()

PETS = "a cat, a dog, a rabbit, a pony, a parrot, a turtle, a hamster, a goat, a duck, a snail".split(", ")

COLOURS = "red blue green yellow white black brown purple orange pink".split()

THINGS = {
    "apple": "apples",
    "orange": "oranges",
    "pear": "pears",
    "lemon": "lemons",
    "melon": "melons",
    "egg": "eggs",
    "bun": "buns",
    "cake": "cakes",
    "pen": "pens",
    "book": "books",
    "cup": "cups",
    "ball": "balls",
    "kite": "kites",
    "lamp": "lamps",
    "rope": "ropes",
    "hat": "hats",
}
"""Things to buy, count and like: singular to plural."""

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()

WORDS = """
strawberry banana mississippi raspberry blueberry cherry apple orange lemon pepper carrot potato tomato onion garlic
butter cheese bottle kettle coffee toffee cookie biscuit muffin pudding dinner supper breakfast kitchen cupboard table
chair window mirror carpet curtain pillow blanket ladder hammer needle thread button zipper jacket sweater slipper
rabbit kitten puppy parrot pigeon sparrow swallow seagull chicken turkey donkey monkey giraffe elephant kangaroo
squirrel beaver otter hamster lizard turtle butterfly beetle cricket spider grasshopper mosquito dolphin whale salmon
river lake ocean island beach pebble meadow forest jungle desert valley mountain volcano glacier waterfall hill
rainbow thunder lightning weather winter summer autumn spring morning evening midnight tomorrow yesterday calendar
minute second hour century moment season planet comet saturn jupiter mercury moonlight sunset sunrise shadow
school teacher lesson pencil paper eraser letter alphabet grammar sentence paragraph dictionary library history
geography science arithmetic addition subtraction multiplication division number fraction decimal triangle rectangle
circle square cylinder sphere pyramid diameter compass ruler balance measure meter kilogram gallon dozen million
street avenue village city country bridge tunnel railway station platform ticket passenger luggage bicycle scooter
tractor trailer balloon rocket engine wheel pedal saddle harbor sailor anchor lantern compartment journey
doctor nurse farmer baker butcher carpenter plumber painter sculptor musician drummer trumpet violin guitar piano
flute accordion orchestra melody rhythm ballet theater cinema actor comedy tragedy story fairy dragon castle princess
knight soldier wizard giant goblin treasure pirate puzzle riddle marble pattern ribbon parcel postcard envelope stamp
bubble puddle giggle whisper holler cheerful happy funny silly merry sorry hungry thirsty sleepy lazy clever gentle
careful beautiful wonderful terrible horrible possible impossible different difficult common necessary success
committee address assess possess access process progress express million bookkeeper balcony cinnamon vanilla ginger
mustard vinegar spaghetti macaroni lasagna broccoli spinach cucumber lettuce cabbage celery parsley radish walnut
almond hazelnut pistachio coconut pineapple papaya avocado apricot peach plum grape melon currant
errand mirror terror horror error arrow barrel carry marry narrow tennis soccer hockey running swimming skipping
jumping hopping dancing singing reading writing sewing knitting cooking baking
"""

SPELLING_WORDS = tuple(dict.fromkeys(WORDS.split()))
"""Common words to spell, each once."""
