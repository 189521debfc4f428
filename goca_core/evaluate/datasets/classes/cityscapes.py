"""Cityscapes: the 19 scored classes and their label values."""

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
"""Label value of each class, class 1 first. Other values are not scored."""

LAST_VALUE = 33
UNNUMBERED = 255
"""The value of id -1 (licence plate) in an 8-bit image."""
