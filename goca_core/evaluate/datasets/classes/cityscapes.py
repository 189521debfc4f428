"""Cityscapes: the 19 classes that are scored, among the ids of its labels."""

from . import table

CLASSES = table(
    """
road, street
sidewalk, pavement
building, house
wall
fence
pole
traffic light
traffic sign, road sign
vegetation, tree, bush, plant
terrain, grass
sky
person = pedestrian, person, people, man, men, woman, women, child, children
rider, cyclist, motorcyclist
car
truck, lorry
bus
train, tram
motorcycle, motorbike
bicycle, bike
"""
)

VALUES: tuple[int, ...] = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Value in the label of each class, class 1 first; the others are not scored."""

LAST_VALUE = 33
UNNUMBERED = 255
"""What the id -1 (licence plate) becomes in an 8-bit picture."""
