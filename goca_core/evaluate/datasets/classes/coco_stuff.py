"""COCO-Stuff: the 27 coarse classes; each is a branch of the hierarchy of its 182 labels."""

from . import table

CLASSES = table(
    """
electronics, electronic, electronic device
appliance
food
furniture
indoor, indoor object
kitchen stuff, kitchenware, kitchen, tableware
accessory, accessories
animal
outdoor, outdoor object
person, people, man, men, woman, women, child, children
sport equipment, sports equipment, sports
vehicle
ceiling
floor
food stuff = vegetable, fruit, salad
furniture stuff = cabinet, shelf, shelves, counter, cupboard, stairs, table
raw material, metal, paper, plastic, cardboard
textile, cloth, clothes, curtain, blanket, towel
wall
window
building, house
ground, road, pavement, sand, snow
plant, grass, tree, flower, bush
sky, cloud
solid, rock, stone, mountain, hill, wood
structural, structure, fence, railing, net
water, sea, river
"""
)

FOOD, FURNITURE, FOOD_STUFF, FURNITURE_STUFF = 3, 4, 15, 16

_THINGS = {1: 10, 2: 12, 10: 9, 16: 8, 26: 7, 34: 11, 44: 6, 52: 3, 62: 4, 72: 1, 78: 2, 84: 5}
"""Coarse classes of the object labels 1 to 91, which are ordered by branch: first label id of a branch -> coarse class."""

_STUFF: dict[int, tuple[int, ...]] = {
    13: (102, 103),
    14: (101, 114, 115, 116, 117, 118),
    FOOD_STUFF: (121, 122, 153, 170),
    FURNITURE_STUFF: (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    17: (100, 132, 139, 143),
    18: (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    19: (171, 172, 173, 174, 175, 176, 177),
    20: (180, 181),
    21: (95, 96, 128, 151, 158, 166),
    22: (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    23: (94, 97, 119, 124, 129, 134, 142, 163, 169),
    24: (106, 157),
    25: (127, 135, 150, 160, 162, 182),
    26: (99, 113, 138, 146, 164),
    27: (120, 148, 155, 178, 179),
}


def _coarse() -> tuple[int, ...]:
    of = {label: coarse for coarse, labels in _STUFF.items() for label in labels}
    branch = 0
    for label in range(1, 92):
        branch = _THINGS.get(label, branch)
        of[label] = branch
    return tuple(of[label] for label in range(1, 183))


COARSE: tuple[int, ...] = _coarse()
"""Coarse class of each of the labels 1 to 182; in the published files, label n has the value n - 1."""

UNLABELLED = 255
