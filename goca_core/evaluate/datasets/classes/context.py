"""Pascal Context: the 59 classes that are usually scored, of the 459 in the labels."""

from . import table

CLASSES = table(
    """
aeroplane, airplane, plane
bag
bed
bedclothes, bedding
bench
bicycle, bike
bird
boat, ship
book
bottle
building, house
bus
cabinet, cupboard
car
cat
ceiling
chair
cloth, clothes, clothing
computer, laptop
cow, cattle
cup, mug
curtain
dog
door
fence
floor
flower
food
grass, lawn
ground, soil
horse
keyboard
light, lamp
motorbike, motorcycle
mountain, hill
mouse, computer mouse
person, people, man, men, woman, women, child, children, kid, boy, girl, baby
plate, dish
platform
potted plant, pottedplant, houseplant
road, street
rock, stone
sheep
shelves, shelf
sidewalk, pavement
sign
sky
snow
sofa, couch
table, dining table
track, railway
train
tree
truck, lorry
television, tv, tv monitor, tvmonitor, monitor
wall
water
window
wood
"""
)

VALUES: tuple[int, ...] = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""Label value of each class, class 1 first. Both the 459 labels and the 59 classes are in alphabetical order."""

LAST_VALUE = 459
